"""Files of Debian packages, and apt's own index, without becoming root."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lapal_ext.study.recipes.recipe import RecipeError

_ROOT = Path("/")
_ELSEWHERE = "make the set on a machine with Debian or Ubuntu and point $LAPAL_EXT_DATA at the folder of its .npz file"


@contextmanager
def package_files(package: str, folder: str, names: Sequence[str]) -> Iterator[list[Path]]:
    """Some files of a package: where it is installed, else unpacked into a folder that is removed afterwards.

    Args:
        package: a Debian package, whose checksum apt verifies when it downloads it.
        folder: where its files are, relative to the root.
        names: of the files.

    Raises:
        RecipeError: not installed and not to be downloaded, for instance on a machine without apt, or other files.
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
    """Output of one of Debian's tools.

    Args:
        command: with its arguments.
        remedy: what would help if it fails.
        folder: where to run it; here by default.

    Raises:
        RecipeError: there is no such tool, or it fails; the message ends with what would help.
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
