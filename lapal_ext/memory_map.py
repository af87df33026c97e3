"""Feature matrices that stay in their files, or in an array of NumPy: seen as tensors, never copied.

The system reads pages of a file when a kernel touches them and drops them when memory is short, so a pool may be larger
than memory, in half precision too. The file must stay as it is while it is used: one that is cut short then ends the
process with a bus error, as with every memory map.

Neither format has a checksum: a file that is cut off, or whose header is damaged, is refused, but a bit that flips
within the numbers gives another number. Where that matters, keep a checksum beside the file.
"""

import os
import tokenize
import warnings
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lapal_ext._checks import STORAGE_DTYPES, shape_text
from lapal_ext.errors import StorageError

Features: TypeAlias = Tensor | NDArray[Any] | str | os.PathLike[str]
"""A matrix [N, D]: a tensor, an array (``numpy.memmap`` too), or a .npy or .safetensors file."""

_MATRIX = "features"  # name of the matrix in a safetensors file that holds several tensors
# What NumPy raises, depending on what of a header is wrong.
NPY_DAMAGE = (ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, MemoryError, tokenize.TokenError)
_ARRAY_DTYPES = (np.float16, np.float32, np.float64)


def as_tensor(name: str, value: Features) -> Tensor:
    """View features as a tensor that shares their memory.

    Args:
        name: the argument that they come in.
        value: of any of the kinds; a tensor is returned as it is.

    Raises:
        TypeError: another type, or an array of another dtype.
        FileNotFoundError: there is no such file.
        StorageError: the file is damaged, of another format, or holds no matrix of features.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return _from_array(name, value)
    if isinstance(value, (str, os.PathLike)):
        return map_file(name, Path(value))
    raise TypeError(f"{name} must be a torch.Tensor, an array or the path of a file, got {type(value).__name__}")


def map_file(name: str, path: Path) -> Tensor:
    """Map a .npy or .safetensors file; see ``as_tensor``."""
    if not path.is_file():
        raise FileNotFoundError(f"{name} must be an existing file, got {path}")
    match path.suffix:
        case ".npy":
            array = load_npy(path, mapped=True)
            try:
                features = _from_array(name, array)
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
                # Copy on write: torch has no tensors that cannot be written to, and a file must never change.
                array: NDArray[Any] = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
            except ValueError:
                array = np.load(path, allow_pickle=False)  # a matrix without entries cannot be mapped
    except NPY_DAMAGE as error:
        raise StorageError(f"{path} is damaged, or no .npy file of numbers: {error}") from error
    if isinstance(array, np.memmap) and path.stat().st_size != array.offset + array.nbytes:
        raise StorageError(
            f"{path} is damaged, or holds more than one array: its header speaks of {array.nbytes} bytes behind the "
            f"first {array.offset}, and the file has {path.stat().st_size}"
        )
    return array


def _map_safetensors(path: Path) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
            if len(names) != 1 and _MATRIX not in names:
                raise StorageError(
                    f"{path} must hold one tensor, or one called {_MATRIX!r}, got {', '.join(names) or 'none'}"
                )
            tensor: Tensor = file.get_tensor(names[0] if len(names) == 1 else _MATRIX)
    except StorageError:
        raise
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise StorageError(f"{path} is damaged or no safetensors file: {error}") from error
    return tensor


class _Owner:
    """Lets NumPy, and so torch, see memory as one that may be written to, and keeps it alive."""

    def __init__(self, array: NDArray[Any]) -> None:
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}
        self.array = array


def _from_array(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype not in _ARRAY_DTYPES or not array.dtype.isnative:
        raise TypeError(f"{name} must be float16, float32 or float64 in this machine's byte order, got {array.dtype}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost: leave rows out, or exclude them")
    if any(stride < 0 for stride in array.strides):
        raise TypeError(f"{name} must not run backwards in memory: pass numpy.ascontiguousarray of it")
    # Without a warning for arrays that are read-only: no kernel writes to a pool.
    return torch.from_numpy(np.asarray(array if array.flags.writeable else _Owner(array)))
