"""Ctrl-C before the command ``lapal-ext`` can handle it, while it imports torch."""

import os
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = 130  # exit status after Ctrl-C
MESSAGE = "lapal-ext: interrupted"


def end_quietly_while_importing() -> None:
    """End the process at Ctrl-C, without a traceback, if it is the command and not a program that imports the package.

    ``handle_again`` ends this.
    """
    main = threading.current_thread() is threading.main_thread()
    if main and _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def handle_again() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Whether this is ``lapal-ext`` or ``python -m lapal_ext``; the latter has no name yet while it is imported."""
    if sys.argv[:1] == ["-m"]:
        return "lapal_ext" in sys.orig_argv
    return bool(sys.argv) and os.path.basename(sys.argv[0]).removesuffix(".exe") == "lapal-ext"


def _end(_number: int, _frame: FrameType | None) -> None:
    os.write(2, f"{MESSAGE}\n".encode())
    os._exit(INTERRUPTED)
