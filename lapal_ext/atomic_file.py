"""Writing a file so that nobody ever sees half of it, into a folder that is known to take it."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there: what stood there stays whole until then.

    The new file is on disk before it takes the name. A symbolic link stays one, and a file keeps its permissions.
    """
    path = Path(os.path.realpath(path))
    # The process and the thread: nobody else writes to it.
    scratch = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
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
