"""Kinds of data: which are read by rows, which come in batches, and how items become batches."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler, Subset

from lapal_ext.validation.arrays import Array, view
from lapal_ext.validation.scalars import type_name
from lapal_ext.validation.tensors import shape_text

Data: TypeAlias = Array | Mapping[str, Any] | Dataset[Any] | DataLoader[Any] | Iterable[Any]
"""Inputs [N, ...], a dict of them, a Dataset, a DataLoader, or an iterable of batches or of items."""

LABELS = ("labels", "label")  # their keys in batches for transformers
_TEXTS = ("input_ids", "attention_mask")  # one-dimensional in an item, two-dimensional in a batch


def count_rows(data: Data) -> int | None:
    """N, or None if it is not known before all data are read.

    Raises:
        TypeError, ValueError: ``data`` is of a kind that cannot be read.
    """
    if isinstance(data, (Tensor, np.ndarray)):
        if data.ndim == 0:
            raise ValueError("data must have shape (N, ...), one input per row, got ()")
        return len(data)
    if isinstance(data, Mapping):
        return _rows_of_columns(data)
    if hasattr(data, "to_numpy"):
        raise TypeError(
            f"data must be a tensor, an array or a Dataset, got {type(data).__name__}: pass "
            "data.to_numpy(dtype='float32')"
        )
    if isinstance(data, (str, bytes, type)) or not (isinstance(data, (Dataset, Iterable)) or _has_rows(data)):
        raise TypeError(
            f"data must be a tensor, a Dataset, a DataLoader or an iterable of batches, got {type_name(data)}"
        )
    if _has_rows(data):
        return len(data)  # type: ignore[arg-type]
    if is_labelled_pair(data):
        return len(data[0])  # type: ignore[index]
    if isinstance(data, Sequence) and len(data) and is_item(data[0]):
        return len(data)
    sampler = _sampler(data)
    if type(sampler) is not BatchSampler:  # a custom sampler may give any rows
        return None
    try:
        rows = len(sampler.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    return rows - rows % sampler.batch_size if sampler.drop_last else rows


def check_order(data: Data, *, kept: bool) -> None:
    """Raise ValueError if ``data`` has a sampler that is not known to give all rows in order.

    Args:
        data: of any kind.
        kept: whether the features are kept in a file.
    """
    sampler = _sampler(data)
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler  # type: ignore[assignment]
    if sampler is not None and type(sampler) is not SequentialSampler:
        what = "the same order each time to be kept in path" if kept else "the order of the dataset"
        otherwise = "" if kept else f" (it has a {type(sampler).__name__}; iter(loader) keeps the order of a loader)"
        raise ValueError(
            f"data must come in {what}: pass the Dataset itself, or a DataLoader with shuffle=False and without a "
            f"custom sampler{otherwise}"
        )


def reads_rows(data: Data) -> bool:
    """Whether ``data`` can be read from any row on."""
    if isinstance(data, (Tensor, np.ndarray, Mapping)) or _has_rows(data) or is_labelled_pair(data):
        return True
    return isinstance(data, Sequence) and len(data) > 0 and is_item(data[0])


def raw_batches(data: Data, batch_size: int, start: int) -> Iterable[Any]:
    """Batches as ``data`` gives them, or made of its rows or items.

    Args:
        data: of any kind.
        batch_size: rows per batch, if ``data`` is not in batches.
        start: the first row that is needed, if ``reads_rows(data)``.

    Raises:
        TypeError, ValueError: items do not make a batch.
    """
    if isinstance(data, (Tensor, np.ndarray)):
        return (data[first : first + batch_size] for first in range(start, len(data), batch_size))
    if isinstance(data, Mapping):
        return _slices_of_columns(data, batch_size, start)
    if is_labelled_pair(data):
        inputs, labels = data  # type: ignore[misc]
        ends = ((first, first + batch_size) for first in range(start, len(inputs), batch_size))
        return ((inputs[first:end], labels[first:end]) for first, end in ends)
    if isinstance(data, Dataset) or reads_rows(data):
        rest: Any = Subset(data, range(start, len(data))) if reads_rows(data) else data  # type: ignore[arg-type]
        # With its own generator: a loader would draw a seed from the global one.
        return read_by(DataLoader(rest, batch_size, collate_fn=collate, generator=torch.Generator(device="cpu")))
    return _batches_of_any(iter(data), batch_size)


def read_by(loader: DataLoader[Any]) -> Iterator[Any]:
    """Begin to read a loader that the package has made; items are read later, and get the caller's default device.

    When it begins, a loader draws a seed by its generator, into a tensor on the default device, which may be another.
    """
    with torch.device("cpu"):
        return iter(loader)


def is_item(raw: object) -> bool:
    """Whether one element is a single row, not a batch: a vector, one number or text as label, or plain lists."""
    if isinstance(raw, (Tensor, np.ndarray)):
        vector = torch.is_floating_point(raw) if isinstance(raw, Tensor) else raw.dtype.kind == "f"
        return raw.ndim == 1 and vector
    if isinstance(raw, (tuple, list)):
        return len(raw) in (2, 3) and isinstance(raw[0], (Tensor, np.ndarray, Mapping)) and _is_single(raw[1])
    if not isinstance(raw, Mapping):
        return False
    if any(_is_single(raw[name]) for name in LABELS if name in raw):
        return True
    sizes = [_dimensions(value) for name, value in raw.items() if name not in LABELS]
    if any(name in raw and _dimensions(raw[name]) == 1 for name in _TEXTS):
        return True
    return any(isinstance(value, (list, str)) for value in raw.values()) and max(sizes, default=0) == 1


def collate(items: Sequence[Any]) -> Any:
    """One batch of items: numbers, arrays and lists become tensors, texts stay texts.

    Raises:
        TypeError, ValueError: the items differ in shape, or hold something that is no tensor.
    """
    first = items[0]
    if isinstance(first, Mapping):
        return {name: collate([item[name] for item in items]) for name in first if all(name in item for item in items)}
    if isinstance(first, tuple) or (isinstance(first, list) and not _dimensions(first)):
        return tuple(collate(list(parts)) for parts in zip(*items, strict=True))
    if isinstance(first, (str, bytes)) or first is None:
        return list(items)
    tensors = [item if isinstance(item, Tensor) else as_tensor(item) for item in items]
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = list(dict.fromkeys(shape_text(tensor.shape) for tensor in tensors))[:2]
        raise ValueError(
            f"data must hold items of one shape, got {' and '.join(shapes)}: pad or resize them, for instance with "
            "DataLoader(data, collate_fn=DataCollatorWithPadding(tokenizer))"
        )
    return torch.stack(tensors)


def as_tensor(item: object) -> Tensor:
    """A tensor of an array, a number or nested lists; Python's own floats get torch's default dtype.

    Raises:
        TypeError: it holds something else.
    """
    try:
        if type(item).__module__.startswith("PIL."):  # [H, W, channels], which no model takes
            raise TypeError
        tensor = view("data", np.asarray(item))
        plain = not isinstance(item, (np.ndarray, np.generic)) and tensor.is_floating_point()
        return tensor.to(torch.get_default_dtype()) if plain else tensor
    except (ValueError, TypeError):
        raise TypeError(
            f"data must hold tensors, arrays or numbers, got {type(item).__name__}: give the dataset a transform that "
            "makes tensors (images: torchvision.transforms.v2, texts: a tokenizer)"
        ) from None


def _batches_of_any(elements: Iterator[Any], batch_size: int) -> Iterator[Any]:
    first = next(elements, None)
    if first is None:
        yield from elements
        return
    rest = itertools.chain([first], elements)
    if not is_item(first):
        yield from rest
        return
    while items := list(itertools.islice(rest, batch_size)):
        yield collate(items)


def _is_single(value: object) -> bool:
    return isinstance(value, (int, float, str, np.generic)) or (
        isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0
    )


def _dimensions(value: object) -> int:
    """The dimensions of a tensor, of an array or of nested lists of numbers; 0 of anything else."""
    if isinstance(value, (Tensor, np.ndarray)):
        return int(value.ndim)
    if isinstance(value, list) and value:
        return 1 + _dimensions(value[0]) if isinstance(value[0], list) else int(isinstance(value[0], (int, float)))
    return 0


def is_labelled_pair(data: object) -> bool:
    """Whether data are all inputs and all labels, rather than two batches."""
    if not (isinstance(data, tuple) and len(data) == 2):
        return False
    inputs, labels = (
        view("data", part) if isinstance(part, np.ndarray) and part.dtype != object else part for part in data
    )
    return (
        isinstance(inputs, Tensor)
        and isinstance(labels, Tensor)
        and inputs.dim() > 1
        and labels.shape == inputs.shape[:1]
        and not labels.is_floating_point()
    )


def _rows_of_columns(data: Mapping[str, Any]) -> int:
    sizes = {str(name): len(value) for name, value in data.items() if _is_column(value)}
    if not sizes:
        raise TypeError(
            "data must be a tensor, a Dataset, a DataLoader or an iterable of batches, or a dict of tensors of shape "
            f"(N, ...), got {type(data).__name__} without a tensor: of a dict of datasets pass one"
        )
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
        raise ValueError(f"data must hold the same number of rows under each key, got {shown}")
    return next(iter(sizes.values()))


def _slices_of_columns(data: Mapping[str, Any], batch_size: int, start: int) -> Iterator[dict[str, Any]]:
    rows = _rows_of_columns(data)
    for first in range(start, rows, batch_size):
        end = first + batch_size
        yield {name: value[first:end] if _is_column(value) else value for name, value in data.items()}


def _is_column(value: object) -> bool:
    return (isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0) or isinstance(value, list)


def _sampler(data: Data) -> Sampler[Any] | None:
    """Of a DataLoader, or of an object that wraps one."""
    if isinstance(data, (Tensor, np.ndarray, Mapping, Sequence)) or isinstance(
        getattr(data, "dataset", None), IterableDataset
    ):
        return None
    samplers = (getattr(data, "batch_sampler", None), getattr(data, "sampler", None))
    return next((sampler for sampler in samplers if isinstance(sampler, Sampler)), None)


def _has_rows(data: object) -> bool:
    """Whether ``data`` is a map-style dataset, of torch or of another library."""
    if isinstance(data, (IterableDataset, DataLoader, Sequence, Mapping, Tensor, np.ndarray, type)):
        return False
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")
