"""What surrounds the body of public functions: modes of torch that they leave, and warnings that point to their caller.

``entry`` is for all of them. ``outside_inference_mode`` is for those that make tensors which outlive the call.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T", bound=Callable[..., Any])

_LIKE_A_LAYER = ("forward",)  # methods that compute as a layer of torch does, in mixed precision too
_INNER = ("lapal_ext", "torch")  # packages between a public function and the code that calls it


def entry(target: T) -> T:
    """Decorate a public function, or a class for all of its public methods.

    It computes as outside of autocast, and ``torch.compile`` does not trace it.

    Mixed precision is for networks. In bfloat16 a covariance, a score or a layer that is written back would lose most
    of its digits, and kernels would get tensors of two dtypes. What a call runs for its caller, such as an acquisition
    of one's own, runs outside of autocast too. Methods of a class whose names begin with an underscore, except the
    constructor, are called by public ones; its properties are decorated one by one where they compute.

    Functions that decide by numbers fall into many small graphs, which take seconds to compile and gain nothing. Code
    around a call is compiled all the same, and so are the ops, which call no entry there.

    Outside of autocast it takes 0.4 us.
    """
    if not isinstance(target, type):
        return _called_outside(target)
    for name, value in list(vars(target).items()):
        if name in _LIKE_A_LAYER or (name.startswith("_") and name != "__init__"):
            continue
        if isinstance(value, classmethod):
            setattr(target, name, classmethod(_called_outside(value.__func__)))
        elif inspect.isfunction(value):
            setattr(target, name, _called_outside(value))
    return target


def _called_outside(function: T) -> T:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return torch.compiler.disable(call)(*args, **kwargs)
        if not torch._C._is_any_autocast_enabled():
            return function(*args, **kwargs)
        with torch._C._DisableAutocast():  # of all devices, and of those within
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def outside_inference_mode(function: T) -> T:
    """Run a function outside of ``torch.inference_mode``, so that the tensors that it makes are ordinary ones.

    A tensor that is made in this mode can never be changed in place or take part in autograd outside of it. Models,
    selectors and pools live longer than the mode in which a caller happens to make or change them.

    Where the mode is off, this is one test of a flag. Where it is on, gradients stay off as they are in it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def warn(text: str, category: type[Warning]) -> None:
    """Warn about the line that called into the package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).split(".")[0] in _INNER:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
