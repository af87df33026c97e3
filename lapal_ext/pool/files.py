"""Feature matrices that stay in their files, or in an array of NumPy: seen as tensors, never copied.

The system reads pages of a file when a kernel touches them and drops them when memory is short, so a pool may be larger
than memory, in half precision too. The file must stay as it is while it is used: one that is cut short then ends the
process with a bus error, as with every memory map.

Neither format has a checksum: a file that is cut off, or whose header is damaged, is refused, but a bit that flips
within the numbers gives another number. Where that matters, keep a checksum beside the file.
"""

import errno
import json
import os
import tokenize
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lapal_ext.errors import StorageError
from lapal_ext.validation.arrays import Array, view
from lapal_ext.validation.scalars import check_path
from lapal_ext.validation.tensors import STORAGE_DTYPES, shape_text

Features: TypeAlias = Array | str | os.PathLike[str]
"""A matrix [N, D]: a tensor, an array (``numpy.memmap`` too), or a .npy or .safetensors file."""

_MATRIX = "features"  # name of the matrix in a safetensors file that holds several tensors
_CODES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# What NumPy raises, depending on what of a header is wrong.
NPY_DAMAGE = (ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError, tokenize.TokenError)


def as_tensor(name: str, value: Features) -> Tensor:
    """View features as a tensor that shares their memory.

    Args:
        name: the argument that they come in.
        value: of any of the kinds; a tensor is returned as it is.

    Raises:
        TypeError: another type, or an array that is no tensor.
        FileNotFoundError: there is no such file.
        StorageError: the file is damaged, of another format, or holds no matrix of features.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return view(name, value)
    if isinstance(value, (str, os.PathLike)):
        return map_file(name, check_path(name, value))
    raise TypeError(f"{name} must be a torch.Tensor, an array or the path of a file, got {type(value).__name__}")


def map_file(name: str, path: Path) -> Tensor:
    """Map a .npy or .safetensors file; see ``as_tensor``."""
    if not path.is_file():
        raise FileNotFoundError(f"{name} must be an existing file, got {path}")
    match path.suffix:
        case ".npy":
            array = load_npy(path, mapped=True)
            try:
                features = view(name, array)
            except TypeError as error:
                raise StorageError(f"{path} is no matrix of features: {error}") from error
        case ".safetensors":
            features = _map_safetensors(path)
        case _:
            raise StorageError(f"{name} must be a .npy or .safetensors file, got {path}")
    if features.dtype not in STORAGE_DTYPES:
        raise StorageError(f"{path} must hold float32, float64, bfloat16 or float16, got {features.dtype}")
    if features.dim() != 2:
        raise StorageError(f"{path} is no matrix of features: its shape is {shape_text(features.shape)}")
    if not features.is_contiguous():
        raise StorageError(f"{path} holds its matrix by columns (Fortran order): save numpy.ascontiguousarray of it")
    return features


def load_npy(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read or map an array of numbers.

    Raises:
        OSError: the file cannot be read.
        StorageError: damaged, or no .npy file of numbers.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise StorageError(f"{path} holds several arrays, as .npz files do: save the one array as .npy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a damaged header looks like one of Python 2
            try:
                array: NDArray[Any] = (
                    _map_as_allowed(lambda mode: np.load(path, mmap_mode=mode, allow_pickle=False))
                    if mapped
                    else np.load(path, allow_pickle=False)
                )
            except ValueError:
                array = np.load(path, allow_pickle=False)  # a matrix without entries cannot be mapped
    except NPY_DAMAGE as error:
        if "Object arrays" in str(error):
            raise StorageError(
                f"{path} holds Python objects, not numbers, and is not read: they might be code"
            ) from error
        raise StorageError(f"{path} is damaged, or no .npy file of numbers: {error}") from error
    if isinstance(array, np.memmap) and path.stat().st_size != array.offset + array.nbytes:
        raise StorageError(
            f"{path} is damaged, or holds more than one array: its header speaks of {array.nbytes} bytes behind the "
            f"first {array.offset}, and the file has {path.stat().st_size}"
        )
    return array


def _map_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="np") as file:  # which knows what a valid file is
            names: list[str] = list(file.keys())
            if len(names) != 1 and _MATRIX not in names:
                raise StorageError(
                    f"{path} must hold one tensor, or one called {_MATRIX!r}, got {', '.join(names) or 'none'}"
                )
            name = names[0] if len(names) == 1 else _MATRIX
            matrix = file.get_slice(name)
            shape, code = matrix.get_shape(), matrix.get_dtype()
    except SafetensorError as error:
        raise StorageError(f"{path} is damaged or no safetensors file: {error}") from error
    if code not in _CODES:
        raise StorageError(f"{path} must hold float32, float64, bfloat16 or float16, got {code}")
    dtype = _CODES[code]
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        start = 8 + length + json.loads(raw.read(length))[name]["data_offsets"][0]
    numbers = f"<i{dtype.itemsize}"  # NumPy has no bfloat16
    array = _map_as_allowed(lambda mode: np.memmap(path, numbers, mode, start, tuple(shape)))
    return view(path.name, array).view(dtype)


def _map_as_allowed(open_map: Callable[[Literal["c", "r"]], NDArray[Any]]) -> NDArray[Any]:
    """A map whose pages are copied when somebody writes to them, since torch has no tensors that cannot be written to.

    The system counts it as memory that may be needed; where its limit is lower, the map is for reading alone, and
    whoever writes to it ends the process.
    """
    try:
        return open_map("c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return open_map("r")
