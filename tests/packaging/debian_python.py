"""A Python from Debian's packages for another release or processor, unpacked in a folder without root, and run there.

`bookworm/arm64/3.11` runs by qemu-user-static, `forky/amd64/3.14` by the C library of its own release. apt keeps its
lists in the folder, so that those of the machine stay as they are. What a launcher starts in turn, such as a compiler,
is the machine's own.
"""

import shutil
import subprocess
from pathlib import Path

PACKAGES = ("python{0}", "python{0}-minimal", "python{0}-venv", "python{0}-dev", "libstdc++6", "libgomp1")
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}


def unpack(name: str, folder: Path) -> Path:
    """Unpacks a Python named SUITE/ARCHITECTURE/VERSION below the folder, unless it is there; returns its launcher."""
    suite, architecture, version = name.split("/")
    root = folder / name.replace("/", "-")
    python = root / "usr" / "bin" / f"python{version}"
    if not python.exists():
        _download(suite, architecture, version, root / "apt")
        for package in (root / "apt" / "cache" / "archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, root], check=True)
        shutil.rmtree(root / "apt")
        _make_relocatable(root, version)
        _write_launcher(root, python, MACHINES[architecture])
    return python


def _mirror() -> str:
    """Where this machine's own packages of Debian come from."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    targets = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(line.split()[1] for line in targets if line.startswith("Debian "))


def _download(suite: str, architecture: str, version: str, apt: Path) -> None:
    for part in ("lists/partial", "cache/archives/partial"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keys}] {_mirror()} {suite} main\n", encoding="utf-8")
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",  # there is no other user who may write into the folder
        "Dir::State": apt,
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    get = ["apt-get", "--quiet=2", *(f"-o{key}={value}" for key, value in options.items())]
    subprocess.run([*get, "update"], check=True)
    packages = [package.format(version) for package in PACKAGES]
    subprocess.run([*get, "install", "--download-only", "--yes", "--no-install-recommends", *packages], check=True)


def _make_relocatable(root: Path, version: str) -> None:
    """Replaces the absolute paths by which ensurepip finds pip and by which the headers find each other."""
    for file in [*(root / "usr/lib").rglob("_sysconfigdata*.py"), *(root / "usr/lib").rglob("ensurepip/__init__.py")]:
        text = file.read_text(encoding="utf-8").replace("'/usr/share/python-wheels", f"'{root}/usr/share/python-wheels")
        file.write_text(text, encoding="utf-8")
    (configuration,) = (root / "usr/include").glob(f"*-linux-gnu/python{version}/pyconfig.h")
    shutil.copy(configuration, root / "usr" / "include" / f"python{version}" / "pyconfig.h")


def _write_launcher(root: Path, python: Path, machine: str) -> None:
    """Puts a script in place of the program; Python takes the path of the script for its own, in environments too."""
    program = python.rename(python.with_name(f"{python.name}.program"))
    if machine == "aarch64":
        emulator = shutil.which("qemu-aarch64-static")
        assert emulator, "needs Debian's qemu-user-static"
        start = f'{emulator} -L {root} -0 "$0"'
    else:
        libraries = root / "usr" / "lib" / f"{machine}-linux-gnu"
        start = f'{libraries}/ld-linux-x86-64.so.2 --library-path {libraries} --argv0 "$0"'
    python.write_text(f'#!/bin/sh\nexec {start} {program} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
