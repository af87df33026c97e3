"""NumPy arrays where tensors are taken: seen as tensors that share their memory, never copied and never converted.

An array counts as the CPU tensor of its dtype: what may be passed as float32 on the CPU may be an array of float32, and
float64, which is what NumPy makes by default, is refused where a float32 tensor is asked for. Results are tensors.
"""

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = Tensor | np.ndarray
"""A tensor, or an array that is seen as one."""

_KINDS = "fiub"  # floating point, integers with and without a sign, truth values


class _Owner:
    """Lets NumPy, and so torch, see memory as one that may be written to, and keeps it alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.array = array


def view(name: str, array: NDArray[Any]) -> Tensor:
    """See an array as a tensor that shares its memory, without a warning where it is read-only: nobody writes to it.

    Args:
        name: the argument that it comes in.
        array: of any shape.

    Raises:
        TypeError: of a dtype or a layout that torch does not have, or masked.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost: leave rows out, or exclude them")
    if array.dtype.kind in "OSU":
        raise TypeError(
            f"{name} must hold numbers, got {array.dtype}: of texts, numpy.unique(..., return_inverse=True) makes some"
        )
    if array.dtype.kind not in _KINDS or not array.dtype.isnative or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold numbers that torch has, in this machine's byte order, got {array.dtype}")
    if any(stride < 0 for stride in array.strides):
        raise TypeError(f"{name} must not run backwards in memory: pass copy() of it")
    if any(stride % array.itemsize for stride in array.strides):
        raise TypeError(f"{name} must not be a field of records: pass copy() of it")
    return torch.from_numpy(np.asarray(array if array.flags.writeable else _Owner(array)))
