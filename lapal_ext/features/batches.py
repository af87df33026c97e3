"""Batches of any data that a model can be run over: inputs as the model accepts them, and labels if there are any."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    SequentialSampler,
    Subset,
)

from lapal_ext.validation.tensors import as_labels, shape_text

Data: TypeAlias = Tensor | Dataset[Any] | DataLoader[Any] | Iterable[Any]
"""Inputs [N, ...], a Dataset, a DataLoader, or an iterable of batches."""

_LABELS = ("labels", "label")  # their keys in batches for transformers


class Batch(NamedTuple):
    """The arguments of a call of the model, and the labels of the batch."""

    arguments: tuple[Tensor, ...]
    keywords: dict[str, Any]
    targets: Tensor | None  # [rows] int64
    rows: int

    def to(self, device: torch.device) -> "Batch":
        """The inputs on another device; labels stay where they are."""
        keywords = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.keywords.items()
        }
        return self._replace(arguments=tuple(value.to(device) for value in self.arguments), keywords=keywords)


def read_batches(data: Data, batch_size: int, start: int) -> Iterator[tuple[int, Batch]]:
    """Yield batches with the number of their first row.

    Args:
        data: of any kind.
        batch_size: rows per batch, if ``data`` is not in batches.
        start: the first row that is needed. Tensors and map-style datasets are read from there, other data from the
            beginning.

    Raises:
        TypeError, ValueError: a model cannot be called with a batch, or its labels are not classes.
    """
    row = start if isinstance(data, Tensor) or _has_rows(data) else 0
    for raw in _source(data, batch_size, start):
        batch = _as_batch(raw, row)
        yield row, batch
        row += batch.rows


def count_rows(data: Data) -> int | None:
    """N, or None if it is not known before all data are read.

    Raises:
        TypeError, ValueError: ``data`` is of a kind that cannot be read.
    """
    if isinstance(data, Tensor):
        if data.dim() == 0:
            raise ValueError("data must have shape (N, ...), one input per row, got ()")
        return len(data)
    if not isinstance(data, (Dataset, Iterable)) or isinstance(data, (str, bytes, Mapping)):
        raise TypeError(
            f"data must be a tensor, a Dataset, a DataLoader or an iterable of batches, got {type(data).__name__}"
        )
    if _has_rows(data):
        return len(data)  # type: ignore[arg-type]
    sampler = _sampler(data)
    if type(sampler) is not BatchSampler:  # a custom sampler may give any rows
        return None
    try:
        rows = len(sampler.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    return rows - rows % sampler.batch_size if sampler.drop_last else rows


def comes_in_order(data: Data) -> bool:
    """Whether ``data`` has no sampler, or a sampler that is known to give the same order each time."""
    sampler = _sampler(data)
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler  # type: ignore[assignment]
    return sampler is None or type(sampler) is SequentialSampler


def _sampler(data: Data) -> Sampler[Any] | None:
    if not isinstance(data, DataLoader) or isinstance(data.dataset, IterableDataset):
        return None
    sampler = data.batch_sampler or data.sampler
    return sampler if isinstance(sampler, Sampler) else None


def _has_rows(data: Data) -> bool:
    return isinstance(data, Dataset) and not isinstance(data, IterableDataset) and hasattr(data, "__len__")


def _source(data: Data, batch_size: int, start: int) -> Iterable[Any]:
    if isinstance(data, Tensor):
        return (data[first : first + batch_size] for first in range(start, len(data), batch_size))
    if isinstance(data, Dataset):
        rest = Subset(data, range(start, len(data))) if _has_rows(data) else data  # type: ignore[arg-type]
        # With its own generator: a loader would draw a seed from the global one.
        return DataLoader(rest, batch_size, generator=torch.Generator(device="cpu"))
    return data


def _as_batch(raw: object, row: int) -> Batch:
    place = f"the batch of data from row {row} on"
    inputs, targets = raw, None
    arguments: tuple[Tensor, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(raw, (tuple, list)):
        if len(raw) not in (1, 2):
            raise ValueError(f"{place} must be inputs or (inputs, labels), got {len(raw)} parts")
        inputs, targets = raw[0], raw[1] if len(raw) == 2 else None
    if isinstance(inputs, Tensor):
        if inputs.dim() == 0:
            raise ValueError(f"{place} must have inputs of shape (B, ...), got ()")
        arguments, rows = (inputs,), len(inputs)
    elif isinstance(inputs, Mapping):
        keywords = {str(name): value for name, value in inputs.items() if name not in _LABELS}
        found = [inputs[name] for name in _LABELS if name in inputs]
        targets = found[0] if found and targets is None else targets
        rows = next((len(value) for value in keywords.values() if isinstance(value, Tensor) and value.dim()), 0)
        if rows == 0:
            raise ValueError(f"{place} must hold tensors of shape (B, ...), got {', '.join(keywords) or 'nothing'}")
    else:
        raise TypeError(
            f"{place} must be a tensor, (inputs, labels) or a dict of a model's arguments, got {type(inputs).__name__}"
        )
    return Batch(arguments, keywords, None if targets is None else _as_targets(targets, rows, place), rows)


def _as_targets(targets: object, rows: int, place: str) -> Tensor:  # [rows] int64
    hint = "leave out labels that are not classes, for instance with (inputs for inputs, _ in loader)"
    if not isinstance(targets, Tensor):
        raise TypeError(f"labels in {place} must be a tensor of integers, got {type(targets).__name__}: {hint}")
    if targets.shape != (rows,) or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(
            f"labels in {place} must be integers of shape ({rows},), got {targets.dtype} of shape "
            f"{shape_text(targets.shape)}: {hint}"
        )
    return as_labels("labels", targets.detach().cpu(), torch.device("cpu"))
