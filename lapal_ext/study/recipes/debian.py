"""Files of Debian packages, and the package index of apt, without root rights."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lapal_ext.study.recipes.recipe import RecipeError

_ROOT = Path("/")
_ELSEWHERE = "make the set on a machine with Debian or Ubuntu and set $LAPAL_EXT_DATA to the folder of its .npz file"


@contextmanager
def package_files(package: str, folder: str, names: Sequence[str]) -> Iterator[list[Path]]:
    """Yield files of a package, which is unpacked into a temporary folder if it is not installed.

    Args:
        package: a Debian package; apt verifies its checksum after a download.
        folder: the folder of its files, relative to the root.
        names: of the files.

    Raises:
        RecipeError: the package is not installed and cannot be downloaded (a machine may have no apt), or it lacks one
            of the files.
    """
    installed = [_ROOT / folder / name for name in names]
    if all(path.is_file() for path in installed):
        yield installed
        return
    with tempfile.TemporaryDirectory() as scratch:
        remedy = f"run apt-get update and try again, or apt-get install {package}"
        run(["apt-get", "download", package], remedy, scratch)
        for archive in Path(scratch).glob("*.deb"):
            run(["dpkg-deb", "-x", str(archive), scratch], remedy)
        unpacked = [Path(scratch, folder, name) for name in names]
        if lacking := [name for name, path in zip(names, unpacked, strict=True) if not path.is_file()]:
            raise RecipeError(f"the Debian package {package} has no {', '.join(lacking)} in /{folder}: {_ELSEWHERE}")
        yield unpacked


def run(command: Sequence[str], remedy: str, folder: str | None = None) -> str:
    """Run a tool of Debian and return its output.

    Args:
        command: with its arguments.
        remedy: advice for the message if the tool fails.
        folder: working folder of the tool; the current one by default.

    Raises:
        RecipeError: the tool does not exist, or it fails; the message ends with advice.
    """
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", errors="replace", check=True
        )
    except FileNotFoundError as error:
        raise RecipeError(f"this machine has no {command[0]}: {_ELSEWHERE}") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise RecipeError(f"{' '.join(command)} failed ({reason}): {remedy}") from error
    return done.stdout
