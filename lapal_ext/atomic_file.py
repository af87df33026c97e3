"""Atomic replacement of a file, and a check that a folder is writable."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object], check: Callable[[], object] = lambda: None) -> None:
    """Call ``write`` with a temporary path in the same folder, then ``check``, then rename that file to ``path``.

    An existing file stays complete until the rename, and the new one is on disk before it. If ``path`` is a symbolic
    link, its target is replaced. The permissions of an existing file are kept.
    """
    path = Path(os.path.realpath(path))
    # The ids of the process and the thread make the name unique.
    scratch = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{path.name}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, scratch)
        check()
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and check that it is writable, before time is spent on results that could not be saved.

    Raises:
        OSError: the folder cannot be made or is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
