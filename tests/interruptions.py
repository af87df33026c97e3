"""Exceptions where no code expects them: before any line of the package, or after any operation of torch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from torch.utils._python_dispatch import TorchDispatchMode

import lapal_ext

PACKAGE = str(Path(lapal_ext.__file__).parent)


class InjectedError(Exception):
    """Raised where no code expects it."""


Raising: TypeAlias = Callable[[int, type[BaseException]], AbstractContextManager[list[int]]]
"""Raises an error at the step with a number, from one on, of those in the body; gives their count, in a list."""


@contextmanager
def raising_at_line(number: int, error: type[BaseException]) -> Iterator[list[int]]:
    """Raise before the line with this number among all lines of the package that run in the body, as Ctrl-C does."""
    seen = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] == number:
                raise error
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


class RaisingAtOp(TorchDispatchMode):
    """Raise after the op with this number has run, custom ones and those in place included."""

    def __init__(self, number: int, error: type[BaseException]) -> None:
        super().__init__()
        self.number, self.error, self.seen = number, error, [0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen[0] += 1
        if self.seen[0] == self.number:
            raise self.error
        return result


@contextmanager
def raising_at_op(number: int, error: type[BaseException]) -> Iterator[list[int]]:
    """Raise after the op of torch with this number among all that run in the body."""
    with RaisingAtOp(number, error) as mode:
        yield mode.seen
