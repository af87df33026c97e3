"""Validation with typed errors that name the argument, the expected value and the actual one.

Shapes are written as specifications such as ``"int64 [M, b]"``: an optional kind, then one letter or number per
dimension. A letter has the same size throughout a call, so one specification is documentation, check and error message.
"""

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.masked import MaskedTensor

from lapal_ext.validation.arrays import view
from lapal_ext.validation.scalars import type_name

COMPUTE_DTYPES = (torch.float32, torch.float64)
STORAGE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF_DTYPES = (torch.bfloat16, torch.float16)  # as storage of what is computed in float32
_ROWS_ADDED = 8192  # rows of half precision in one sum
_FIXED_DTYPES = {"int64": torch.int64, "bool": torch.bool, "float64": torch.float64}
_OF_A_MASK = ": of a mask pass mask.nonzero()[:, 0], or numpy.flatnonzero(mask)"
_SPECIFICATION = re.compile(r"^(?:(\w+) )?\[(.*)\]$")


class ShapeSpec(NamedTuple):
    """One parsed specification."""

    kind: str  # "compute" (float32 or float64, the same throughout a call), "storage" (half precision too) or a dtype
    dims: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "ShapeSpec":
        """Read ``"int64 [M, b]"``; without a kind it is ``compute``."""
        match = _SPECIFICATION.match(text)
        if match is None:
            raise ValueError(f"not a shape specification: {text!r}")
        dims = tuple(dim.strip() for dim in match[2].split(",") if dim.strip())
        return cls(match[1] or "compute", dims)


def shape_text(dims: Sequence[object]) -> str:
    """Write a shape as Python writes a tuple, letters unquoted: ``(N, 128)``, ``(3,)``."""
    return f"({', '.join(map(str, dims))}{',' if len(dims) == 1 else ''})"


def check_tensors(specs: Mapping[str, ShapeSpec], values: Mapping[str, object]) -> dict[str, int]:
    """Check every tensor of a call against its specification, and all against each other.

    Args:
        specs: the specification of each argument, in the order in which they are matched.
        values: the arguments; None is skipped.

    Returns:
        The size of each letter.

    Raises:
        TypeError: an argument is not a dense tensor, or its dtype is wrong.
        ValueError: a shape or a device does not match.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    first: Tensor | None = None
    first_name, compute, compute_name = "", None, ""
    for name, spec in specs.items():
        value = values[name]
        if value is None:
            continue
        value = check_dense(name, value)
        _check_dtype(name, value.dtype, spec.kind, compute, compute_name)
        if spec.kind == "compute" and compute is None:
            compute, compute_name = value.dtype, name
        if first is None:
            first, first_name = value, name
        elif value.device != first.device:
            raise ValueError(f"{name} must be on {first.device} like {first_name}, got {value.device}")
        _match_shape(name, value, spec, sizes, owner, values)
    return sizes


def check_dense(name: str, value: object) -> Tensor:
    """Return ``value`` or raise TypeError unless it is a dense tensor: neither sparse nor nested nor masked."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type_name(value)}")
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")
    if isinstance(value, MaskedTensor):
        raise TypeError(
            f"{name} must not be a masked tensor, since its mask would be ignored: leave rows out or exclude them"
        )
    return value


def as_dense(name: str, value: object) -> Tensor:
    """``check_dense`` for public functions: a NumPy array is accepted as a tensor that shares its memory."""
    if isinstance(value, np.ndarray):
        return view(name, value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or a NumPy array, got {type_name(value)}{way_out(value)}")
    return check_dense(name, value)


def way_out(value: object) -> str:
    """How to make a tensor or an array of a value of another type, to follow its type in an error."""
    if hasattr(value, "to_numpy"):  # of pandas or polars
        return ": pass its .to_numpy()"
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))  # lists, and columns of datasets
    return ": pass torch.tensor(...) or numpy.asarray(...) of it" if listed else ""


def _check_dtype(name: str, dtype: torch.dtype, kind: str, compute: torch.dtype | None, owner: str) -> None:
    if kind == "compute":
        if dtype not in COMPUTE_DTYPES:
            raise TypeError(f"{name} must be float32 or float64, got {dtype}")
        if compute is not None and dtype != compute:
            raise TypeError(f"{name} must be {compute} like {owner}, got {dtype}")
    elif kind == "storage":
        if dtype not in STORAGE_DTYPES:
            raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {dtype}")
    elif dtype != _FIXED_DTYPES[kind]:
        raise TypeError(f"{name} must be {_FIXED_DTYPES[kind]}, got {dtype}")


def _match_shape(
    name: str,
    value: Tensor,
    spec: ShapeSpec,
    sizes: dict[str, int],
    owner: dict[str, str],
    values: Mapping[str, object],
) -> None:
    if value.dim() == len(spec.dims):
        for dim, size in zip(spec.dims, value.shape, strict=True):
            if dim not in sizes and not dim.isdigit():
                sizes[dim], owner[dim] = size, name
            elif size != (sizes[dim] if dim in sizes else int(dim)):
                break
        else:
            return
    for dim in [dim for dim, argument in owner.items() if argument == name]:  # sizes that only this argument has
        del sizes[dim], owner[dim]
    wanted = [sizes.get(dim, dim) for dim in spec.dims]
    partners = dict.fromkeys(owner[dim] for dim in spec.dims if dim in owner)
    because = " and ".join(f"{p} {_shape_of(values[p])}" for p in partners)
    match = f" to match {because}" if because else ""
    raise ValueError(f"{name} must have shape {shape_text(wanted)}{match}, got {shape_text(value.shape)}")


def _shape_of(value: object) -> str:
    return shape_text(value.shape) if isinstance(value, Tensor) else ""


def count_of_changes(tensor: Tensor) -> int:
    """How often a tensor was changed in place, as torch counts it; those of inference mode have no count."""
    return -1 if tensor.is_inference() else tensor._version


def is_finite(*values: Tensor) -> bool:
    """Whether ``values`` hold neither NaN nor infinity.

    The sum is tested first, since it is many times cheaper than a mask. A sum of finite values may overflow, so the
    mask decides where the sum is not finite.
    """
    first, *others = values
    total = _sum(first.detach())
    for value in others:
        total = total + _sum(value.detach())
    return math.isfinite(total) or all(bool(value.isfinite().all()) for value in values)


def _sum(value: Tensor) -> Tensor:
    if value.element_size() >= 4 or value.dim() == 0:
        return value.sum(dtype=torch.float32 if value.element_size() < 4 else None)
    # A sum in another dtype makes torch copy the whole tensor first: twice the size of a pool in half precision. All
    # tiles share one buffer: new buffers, with sums allocated between them, would fragment memory by the pool's size.
    tiles = value.split(_ROWS_ADDED)
    sums = value.new_empty(len(tiles), dtype=torch.float32)
    buffer = torch.empty_like(tiles[0], dtype=torch.float32)
    for number, tile in enumerate(tiles):
        torch.sum(buffer[: len(tile)].copy_(tile), dim=None, out=sums[number])
    return sums.sum()


def check_finite(name: str, value: Tensor) -> None:
    """Raise ValueError if ``value`` holds NaN or infinity."""
    if value.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device")
    if not is_finite(value):
        bad, first = 0, -1
        for number, tile in enumerate(value.split(_ROWS_ADDED) if value.dim() > 0 else [value[None]]):
            wrong = tile.isfinite().logical_not()  # of a tile, since a pool may be larger than memory
            bad += int(wrong.sum())
            if first < 0 and bad > 0:
                first = number * _ROWS_ADDED + int(wrong.reshape(len(wrong), -1).any(1).int().argmax())
        place = f", the first in row {first}" if value.dim() == 2 else ""
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite of {value.numel()} values{place}")


def check_overflow(name: str, *results: Tensor) -> None:
    """Raise ValueError unless ``results``, which were computed from the finite argument ``name``, are finite."""
    if not is_finite(*results):
        raise ValueError(
            f"{name} must give results that are finite in {results[0].dtype}, got NaN or infinity: rescale them, or "
            "look for NaN in the posterior"
        )


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Raise ValueError unless all labels lie in [0, num_classes)."""
    check_index_range(name, labels, num_classes, f"[0, {num_classes}), one of the {num_classes} classes")


def check_index_range(name: str, indices: Tensor, size: int, allowed: str) -> None:
    """Raise ValueError unless all of ``indices`` lie in [0, size)."""
    if indices.numel() == 0:
        return
    low, high = (int(bound) for bound in indices.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{name} must lie in {allowed}, got {low if low < 0 else high}")


def check_distinct(name: str, indices: Tensor) -> None:
    """Raise ValueError if an index of a vector occurs twice."""
    values, counts = indices.unique(return_counts=True)
    if values.numel() != indices.numel():
        raise ValueError(f"{name} must not hold duplicates, got {int(values[counts.argmax()])} more than once")


def as_labels(name: str, labels: object, device: torch.device, *, rows: bool = False) -> Tensor:
    """Return integers of any type as an int64 tensor on ``device``; floats and booleans are refused.

    An empty vector may have any dtype: that of ``torch.tensor([])`` and ``numpy.array([])`` is a floating-point one.

    Args:
        name: name of the argument, for errors.
        labels: a tensor, an array (also of objects, as pandas makes it), or a list, tuple or range of integers.
        device: where they must be; a list is put there.
        rows: whether they are row numbers, for which a mask is a common mistake.

    Raises:
        TypeError: not a tensor, an array or a list of integers.
        ValueError: on another device, or an integer that 64 bits with a sign do not hold.
    """
    if isinstance(labels, np.ndarray) and labels.dtype == object and labels.ndim == 1:
        labels = labels.tolist()
    if isinstance(labels, (list, tuple, range)):
        numbers = [_as_integer(name, value, rows=rows) for value in labels]
        return torch.tensor(numbers, dtype=torch.int64, device=device)
    labels = as_dense(name, labels)
    real = labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool
    if real and labels.shape != (0,):
        hint = _OF_A_MASK if rows and labels.dtype == torch.bool else ""
        raise TypeError(f"{name} must hold integers, got {labels.dtype}{hint}")
    if labels.device != device:
        raise ValueError(f"{name} must be on {device}, got {labels.device}")
    signed = labels.to(torch.int64)
    if labels.dtype == torch.uint64 and bool((signed < 0).any()):
        first = int(signed[signed < 0][0]) + 2**64
        raise ValueError(f"{name} must hold integers of 64 bits with a sign, got {first}")
    return signed


def _as_integer(name: str, value: Any, *, rows: bool) -> int:
    mask = isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) == torch.bool
    try:
        if mask:
            raise TypeError
        number = operator.index(value)
    except TypeError:
        hint = _OF_A_MASK if rows and mask else ""
        raise TypeError(f"{name} must hold integers, got a list with {type(value).__name__}{hint}") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must hold integers of 64 bits with a sign, got {number}")
    return number
