"""The same numbers in NumPy arrays: ``SEEN`` ones can be viewed as tensors, ``REFUSED`` ones cannot."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

AnyArray = NDArray[Any]


def _read_only(array: AnyArray) -> AnyArray:
    array.flags.writeable = False
    return array


def _strided(array: AnyArray) -> AnyArray:
    return np.repeat(array, 2, axis=0)[::2]


def _backwards(array: AnyArray) -> AnyArray:
    return array[::-1].copy()[::-1]


def _field(array: AnyArray) -> AnyArray:
    """A field of packed records, whose strides are no multiple of its item size."""
    records = np.zeros(array.shape, dtype=np.dtype([("flag", "u1"), ("value", array.dtype)]))
    records["value"] = array
    return records["value"]


def _masked(array: AnyArray) -> AnyArray:
    return np.ma.array(array, mask=array == array.flat[0])


SEEN: dict[str, Callable[[AnyArray], AnyArray]] = {
    "contiguous": lambda array: array,
    "by columns": np.asfortranarray,
    "read-only": _read_only,
    "strided": _strided,
}
REFUSED: dict[str, Callable[[AnyArray], AnyArray]] = {
    "of objects": lambda array: array.astype(object),
    "in the other byte order": lambda array: array.astype(array.dtype.newbyteorder()),
    "masked": _masked,
    "complex": lambda array: array.astype(np.complex128),
    "of texts": lambda array: array.astype(str),
    "of bytes": lambda array: array.astype("S"),
    "of times": lambda array: array.astype(np.int64).astype("m8[s]"),
    "of records": lambda array: np.zeros(array.shape, dtype=[("value", array.dtype)]),
    "a field of records": _field,
    "backwards": _backwards,
    "wider than torch": lambda array: array.astype(np.clongdouble),
    "0-d": lambda array: np.array(array.flat[0]),
    "0-d of objects": lambda array: np.array(array, dtype=object).reshape(-1)[:1].reshape(()),
}


def as_array(tensor: Tensor) -> AnyArray:
    array: AnyArray = tensor.detach().numpy().copy()
    return array
