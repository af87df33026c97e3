"""Feature matrices in files or NumPy arrays: viewed as tensors, never copied.

The operating system reads pages of a file when a kernel accesses them and drops them when memory is short, so a pool
may be larger than memory, in half precision too. The file must not change while it is used: truncating it ends the
process with a bus error, as with every memory map.

Neither format has a checksum. A truncated file or a damaged header is an error, but a flipped bit within the numbers is
not detected. Where that matters, keep a checksum beside the file.
"""

import errno
import json
import os
import re
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
from lapal_ext.validation.scalars import check_path, type_name
from lapal_ext.validation.tensors import STORAGE_DTYPES, shape_text, way_out

Features: TypeAlias = Array | str | os.PathLike[str]
"""A matrix [N, D]: a tensor, an array (``numpy.memmap`` too), a .npy or .safetensors file, or a folder of such."""

_MATRIX = "features"  # name of the matrix in a safetensors file that holds several tensors
FEATURE_SUFFIXES = (".npy", ".safetensors")
_NO_FEATURES = ".targets.npy"  # the labels that ``features.extract`` writes beside features
_DIGITS = re.compile(r"([0-9]+)")
_CODES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
# The errors that NumPy raises for damaged headers.
NPY_DAMAGE = (ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError, tokenize.TokenError)


def as_tensor(name: str, value: object) -> Tensor:
    """View features as a tensor that shares their memory.

    Args:
        name: name of the argument, for errors.
        value: the features; a tensor is returned unchanged.

    Raises:
        TypeError: another type, or an array that torch does not support.
        FileNotFoundError: there is no such file.
        StorageError: the file is damaged, has another format, or holds no matrix of features.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return view(name, value)
    if isinstance(value, (str, os.PathLike)):
        return map_file(name, check_path(name, value))
    kind = f"{type_name(value)}{way_out(value)}"
    raise TypeError(f"{name} must be a torch.Tensor, an array or the path of a file, got {kind}")


def map_file(name: str, path: Path) -> Tensor:
    """Map a .npy or .safetensors file; see ``as_tensor``.

    The files of a folder, in the order of the numbers in their names, are the parts of one matrix. Several of them are
    copied into memory, and their order is that of the rows.
    """
    if path.is_dir():
        return _joined(name, path)
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
    if features.shape[1] == 0:
        raise StorageError(f"{name} must have a column or more, got {path} of shape {shape_text(features.shape)}")
    if not features.is_contiguous():
        raise StorageError(f"{path} holds its matrix by columns (Fortran order): save numpy.ascontiguousarray of it")
    return features


def _joined(name: str, folder: Path) -> Tensor:
    files = [path for path in folder.iterdir() if path.suffix in FEATURE_SUFFIXES]
    paths = [path for path in files if not path.name.endswith(_NO_FEATURES)]
    if not paths:
        raise FileNotFoundError(f"{name} must be a file, or a folder of .npy or .safetensors files, got {folder}")
    paths.sort(key=_by_numbers)
    parts = [map_file(name, path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if (part.dtype, part.shape[1]) != (parts[0].dtype, parts[0].shape[1]):
            raise StorageError(
                f"{path} must have {parts[0].shape[1]} columns of {parts[0].dtype} like {paths[0]}, got "
                f"{part.shape[1]} of {part.dtype}"
            )
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _by_numbers(path: Path) -> tuple[list[int | str], str]:
    """Sorts names by the numbers in them, and names with equal numbers (``part1``, ``part01``) by their characters."""
    return [int(part) if part.isdigit() else part for part in _DIGITS.split(path.name)], path.name


def load_npy(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read or map an array of numbers.

    Raises:
        OSError: the file cannot be read.
        StorageError: the file is damaged, or is not a .npy file of numbers.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            raise StorageError(f"{path} holds several arrays, as .npz files do: save the one array as .npy")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about damaged headers that look like those of Python 2
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
                f"{path} holds Python objects, not numbers, and is not read: unpickling them could run code"
            ) from error
        raise StorageError(f"{path} is damaged, or no .npy file of numbers: {error}") from error
    if isinstance(array, np.memmap) and path.stat().st_size != array.offset + array.nbytes:
        raise StorageError(
            f"{path} is damaged, or holds more than one array: by its header there are {array.nbytes} bytes after the "
            f"first {array.offset}, and the file has {path.stat().st_size}"
        )
    return array


def _map_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="np") as file:  # which also checks that the file is valid
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
        return torch.empty(shape, dtype=dtype, device="cpu")
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        start = 8 + length + json.loads(raw.read(length))[name]["data_offsets"][0]
    numbers = f"<i{dtype.itemsize}"  # NumPy has no bfloat16
    array = _map_as_allowed(lambda mode: np.memmap(path, numbers, mode, start, tuple(shape)))
    return view(path.name, array).view(dtype)


def _map_as_allowed(open_map: Callable[[Literal["c", "r"]], NDArray[Any]]) -> NDArray[Any]:
    """Map a file copy-on-write, since torch has no read-only tensors.

    The system counts such a map as memory that may be needed. If that exceeds its limit, the map is read-only, and a
    write to it ends the process.
    """
    try:
        return open_map("c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        return open_map("r")
