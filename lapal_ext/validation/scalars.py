"""Checks of single values: numbers, names, flags, generators, paths and devices."""

import math
import numbers
import operator
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

_INT64_MAX = 2**63 - 1  # torch counts in int64
_LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d")
_TORCH_HAS_TOO = ("DataLoader", "Dataset", "Generator", "Module", "ProcessGroup", "Tensor", *_LAYERS)


def type_name(value: object) -> str:
    """The name of a type, for errors, with its module where a class of another library has the name of one of torch's.

    The module is written without private parts: ``numpy.random.Generator``.
    """
    kind = type(value)
    if kind.__name__ not in _TORCH_HAS_TOO or kind.__module__.split(".")[0] == "torch":
        return kind.__name__
    return ".".join([*(part for part in kind.__module__.split(".") if not part.startswith("_")), kind.__name__])


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {reprlib.repr(value)}")


def check_number(name: str, value: object, *, above: float | None = None, at_least: float | None = None) -> float:
    """Return ``value`` as a finite float within its bound.

    Raises:
        TypeError: not a real number.
        ValueError: not finite, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if above is not None and not number > above:
        raise ValueError(f"{name} must be greater than {above:g}, got {number:g}")
    if at_least is not None and not number >= at_least:
        raise ValueError(f"{name} must be at least {at_least:g}, got {number:g}")
    return number


def check_integer(name: str, value: Any, *, at_least: int, at_most: int = _INT64_MAX, limit: str = "") -> int:
    """Return ``value`` as an int within its bounds; ``limit`` says where the upper one comes from.

    Raises:
        TypeError: not an integer.
        ValueError: out of range.
    """
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    if number > at_most:
        raise ValueError(f"{name} must be at most {at_most}{limit and f' ({limit})'}, got {number}")
    return number


def check_flag(name: str, value: object) -> bool:
    """Return a bool, or raise TypeError unless ``value`` is True or False, also of NumPy; "no" would be truthy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
    return bool(value)


def check_generator(name: str, value: object, device: torch.device | None = None) -> None:
    """Raise TypeError unless ``value`` is a torch.Generator or None, and ValueError unless it is on ``device``."""
    if value is None:
        return
    if not isinstance(value, torch.Generator):
        raise TypeError(f"{name} must be a torch.Generator or None, got {type_name(value)}")
    if device is not None and value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")


def check_path(name: str, value: object) -> Path:
    """Return ``value`` as a Path with a valid name.

    Raises:
        TypeError: neither a str nor an os.PathLike of str.
        ValueError: no file can have this name, or it is empty, which ``Path`` reads as the current folder.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a str or an os.PathLike, got {type(value).__name__}")
    given = os.fspath(value)
    if not isinstance(given, str):
        raise TypeError(f"{name} must be a str or an os.PathLike of str, got {type(value).__name__}, a path in bytes")
    if not given:
        raise ValueError(f"{name} must be the name of a file or a folder, got an empty str")
    if "\0" in given:
        raise ValueError(f"{name} must not hold a null character, got {given!r}")
    try:
        os.fsencode(given)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be a valid file name, got {given!r}: {error}") from None
    return Path(given)


def check_device(name: str, value: object) -> torch.device:
    """Return ``value`` as a device that is available.

    Raises:
        TypeError: neither a torch.device nor a str.
        ValueError: there is no such device, or not on this machine.
    """
    if not isinstance(value, (str, torch.device)):
        raise TypeError(f"{name} must be a torch.device or its name, got {type(value).__name__}")
    try:
        device = torch.device(value)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError from a torch without CUDA
        raise ValueError(f"{name} must be available, got {value!r}: {error}") from None
    if device.type == "meta":
        raise ValueError(f"{name} must hold values, got {value!r}")
    return device
