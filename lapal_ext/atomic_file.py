"""Atomic replacement of a file, and a check that a folder is writable."""

import functools
import os
import re
import shutil
import socket
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

_MARK = "lapal-ext"  # in the names of temporary files
_MOST_TARGETS = 1000  # files whose folders were searched, of which later writes are quicker


def replace_file(path: Path, write: Callable[[Path], object], check: Callable[[], object] = lambda: None) -> None:
    """Call ``write`` with a temporary path in the same folder, then ``check``, then rename that file to ``path``.

    An existing file stays complete until the rename, and the new one is on disk before it. If ``path`` is a symbolic
    link, its target is replaced. The permissions of an existing file are kept. Temporary files for ``path`` that killed
    processes of this machine have left are deleted.
    """
    path = Path(os.path.realpath(path))
    _delete_left_over(path)
    # The ids of the process and the thread make the name unique.
    scratch = path.with_name(f".{os.getpid()}.{threading.get_ident()}.{_machine()}.{_MARK}.{path.name}")
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


@functools.lru_cache(_MOST_TARGETS)
def _delete_left_over(path: Path) -> None:
    """Delete temporary files for this path whose process is gone."""
    left = re.compile(rf"\.([0-9]+)\.[0-9]+\.{_machine()}\.{_MARK}\.{re.escape(path.name)}")
    try:
        names = os.listdir(path.parent)
    except OSError:  # a folder that may be written but not listed
        return
    for name in names:
        if (found := left.fullmatch(name)) and not _runs(int(found[1])):
            path.with_name(name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    """Whether a process of this machine may still run."""
    if os.name != "posix":  # elsewhere, signal 0 is not a question
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@functools.cache
def _machine() -> str:
    """Eight digits for the machine, or the container, to which ids of processes belong: folders may be shared."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return f"{zlib.crc32(f'{socket.gethostname()} {space}'.encode()):08x}"


def make_folder(folder: Path) -> None:
    """Make a folder and check that it is writable, before time is spent on results that could not be saved.

    Raises:
        OSError: the folder cannot be made or is not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
