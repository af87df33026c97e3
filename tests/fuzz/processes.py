"""Other processes: with other settings, or killed at a counted step of their work."""

import os
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Seconds after which a process is taken to hang, even on a slow and busy machine.
HANGS = 600.0


def python(code: str, *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = HANGS) -> str:
    """Run ``code`` in a new Python, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.link", "os.truncate", "os.rmdir"}


def at_step(number: int, folder: str | Path, do: Callable[[], object]) -> None:
    """Call ``do`` just before this process opens, moves or removes something in ``folder`` for the n-th time.

    It counts steps, not time, so that it happens at the same place on every machine. It cannot be undone.
    """
    left, prefix = number, os.fspath(folder)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _STEPS and isinstance(arguments[0], str | os.PathLike):
            inside = os.path.abspath(os.fspath(arguments[0])).startswith(prefix)
            left -= inside
            if inside and left == 0:
                do()

    sys.addaudithook(count)


def kill_at_step(number: int, folder: str | Path) -> None:
    at_step(number, folder, lambda: os.kill(os.getpid(), signal.SIGKILL))


def kill_after_bytes(size: int) -> None:
    """Let Linux end this process, by SIGXFSZ, when it writes more than ``size`` bytes to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forked(function: Callable[[], object]) -> int:
    """Call ``function`` in a fork of this process, in which everything is imported; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads, which are idle here
        process = os.fork()
    if process == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
