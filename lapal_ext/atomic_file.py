"""Writing a file so that nobody ever sees half of it, into a folder that is known to take it."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there: what stood there stays whole until then.

    A symbolic link stays one, and a file keeps its permissions.
    """
    path = Path(os.path.realpath(path))
    scratch = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(scratch)
        if path.exists():
            shutil.copymode(path, scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and try to write there, before time is spent on what could not be kept.

    Raises:
        OSError: it cannot be made, or not written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
