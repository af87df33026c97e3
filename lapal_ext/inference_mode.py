"""State that outlives ``torch.inference_mode``.

A tensor that is made in this mode can never be changed in place or take part in autograd outside of it. Models,
selectors and pools live longer than the mode in which a caller happens to make or change them, so the functions that
make their tensors leave it.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function outside of ``torch.inference_mode``, so that the tensors that it makes are ordinary ones.

    Where the mode is off, this is one test of a flag. Where it is on, gradients stay off as they are in it.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return call
