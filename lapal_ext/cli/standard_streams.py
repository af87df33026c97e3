"""Standard input, output and error as callers may leave them: closed, full, or a pipe that nobody reads any more."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


class OutputError(Exception):
    """Standard output does not take what is printed. It is no OSError, so nobody takes it for the error of a file.

    Attributes:
        is_closed: the reader of a pipe has gone.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror or error}")
        self.is_closed = isinstance(error, BrokenPipeError)


@contextmanager
def usable_streams() -> Iterator[None]:
    """Let the body print and read whatever the standard streams are.

    A stream that was closed before the process began is replaced by the null device, which takes everything and is
    empty. A character that the encoding of a stream lacks is replaced.

    Raises:
        OutputError: from ``print`` and ``sys.stdout.flush``. What is left to print is then dropped.
    """
    for name, mode in _MODES.items():
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - Python flushes it when it exits
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 may lack a letter of a name or a text
    output = sys.stdout
    sys.stdout = cast("TextIO", _Output(output))
    try:
        yield
    finally:
        sys.stdout = output


def print_error(text: str) -> None:
    """Print a line on standard error, if that takes it: there is no other place to say that it does not."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _drop_rest(sys.stderr)


class _Output:
    """A text stream whose errors are OutputErrors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._explained():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._explained():
            self._stream.flush()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _drop_rest(self._stream)
            raise OutputError(error) from error


def _drop_rest(stream: TextIO) -> None:
    """Send what is left in a stream to the null device: Python writes it when it exits, and would complain again."""
    with suppress(OSError), open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())
