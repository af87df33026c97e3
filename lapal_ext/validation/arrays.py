"""NumPy arrays in place of tensors: viewed as tensors that share their memory, never copied and never converted.

An array is used as a CPU tensor of the same dtype. Where float32 is required, an array of float64 (the default of
NumPy) raises TypeError, as a float64 tensor does. Results are tensors.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = Tensor | np.ndarray
"""A tensor, or an array that is viewed as one."""

Rows: TypeAlias = Array | Sequence[int]
"""Row numbers or labels: integers of any type, in a tensor, an array or a list."""

Labels: TypeAlias = Array | Sequence[int] | Sequence[str]
"""Numbers of classes, or names of classes where these are known."""

_KINDS = "fiub"  # floating point, signed and unsigned integers, booleans


class _WritableView:
    """Presents the memory of a read-only array as writable to NumPy, and so to torch, and keeps it alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.array = array


def view(name: str, array: NDArray[Any]) -> Tensor:
    """View an array as a tensor that shares its memory. A read-only array gives no warning: no code writes to it.

    Args:
        name: name of the argument, for errors.
        array: of any shape.

    Raises:
        TypeError: the array is masked, or torch does not support its dtype or its layout.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must not be a masked array, since its mask would be ignored: leave rows out or exclude them"
        )
    if array.dtype.kind in "OSU":
        raise TypeError(
            f"{name} must hold numbers, got {array.dtype}: numpy.unique(..., return_inverse=True) turns texts into them"
        )
    if array.dtype.kind not in _KINDS or not array.dtype.isnative or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold numbers that torch supports, in native byte order, got {array.dtype}")
    if any(stride < 0 for stride in array.strides):
        raise TypeError(f"{name} must not have negative strides: pass its copy()")
    if any(stride % array.itemsize for stride in array.strides):
        raise TypeError(f"{name} must not be a field of a structured array: pass its copy()")
    return torch.from_numpy(np.asarray(array if array.flags.writeable else _WritableView(array)))
