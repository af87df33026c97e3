"""Batches that a model can be called with: inputs as the model accepts them, labels, and names of rows."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lapal_ext.features.sources import LABELS, Data, as_tensor, raw_batches, reads_rows
from lapal_ext.validation.arrays import view
from lapal_ext.validation.tensors import as_labels, shape_text

Ids = Tensor | tuple[str, ...]
"""What names the rows: integers [rows], or texts."""


class Batch(NamedTuple):
    """The arguments of a call of the model, and the labels of the batch."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    targets: Tensor | None  # [rows] int64
    rows: int
    ids: Ids | None

    def to(self, device: torch.device) -> "Batch":
        """The inputs on another device; labels stay where they are."""

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            return value.to(device) if isinstance(value, Tensor) else value

        return self._replace(arguments=tuple(map(moved, self.arguments)), keywords=moved(self.keywords))

    @property
    def mask(self) -> Tensor | None:
        """The attention mask of texts, [rows, T]."""
        mask = self.keywords.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def for_model(self, model: nn.Module) -> "Batch":
        """The same batch with the keywords that ``model.forward`` takes, or with one dict if it takes that.

        Raises:
            TypeError: an argument that the model requires is missing.
        """
        if not self.keywords:
            return self
        kinds = inspect.Parameter
        parameters = list(inspect.signature(model.forward).parameters.values())
        named = [p for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
        known = {p.name: self.keywords[p.name] for p in named if p.name in self.keywords}
        required = [p.name for p in parameters if p.default is kinds.empty and p.kind not in _VARIADIC]
        if not known and len(required) == 1:
            return self._replace(arguments=(self.keywords,), keywords={})
        if any(p.kind == kinds.VAR_KEYWORD for p in parameters):
            known |= {name: value for name, value in self.keywords.items() if isinstance(value, Tensor)}
        if missing := [name for name in required if name not in known]:
            raise TypeError(
                f"data must hold {', '.join(map(repr, missing))}, which forward of model requires, got "
                f"{', '.join(map(repr, self.keywords))}"
            )
        return self._replace(keywords=known)


_VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


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
    row = start if reads_rows(data) else 0
    for raw in raw_batches(data, batch_size, start):
        batch = _as_batch(raw, row)
        yield row, batch
        row += batch.rows


def _as_batch(raw: object, row: int) -> Batch:
    place = f"the batch of data from row {row} on"
    inputs, targets, ids = raw, None, None
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    if isinstance(raw, (tuple, list)):
        if len(raw) not in (1, 2, 3):
            raise ValueError(
                f"{place} must be inputs, (inputs, labels) or (inputs, labels, ids), got {len(raw)} parts: pass a dict "
                "for a model that takes several inputs"
            )
        inputs, targets, ids = (*raw, None, None)[:3]
    inputs = view(f"inputs of {place}", inputs) if isinstance(inputs, np.ndarray) else inputs
    if isinstance(inputs, Tensor):
        if inputs.dim() == 0:
            raise ValueError(f"{place} must have inputs of shape (B, ...), got ()")
        arguments, rows = (inputs,), len(inputs)
    elif isinstance(inputs, Mapping):
        keywords = {str(name): _as_input(value) for name, value in inputs.items() if name not in LABELS}
        found = [inputs[name] for name in LABELS if name in inputs]
        targets = found[0] if found and targets is None else targets
        rows = next((len(value) for value in keywords.values() if isinstance(value, Tensor) and value.dim()), 0)
        if rows == 0:
            raise ValueError(
                f"{place} must hold tensors of shape (B, ...), got {', '.join(keywords) or 'nothing'}: texts need a "
                "tokenizer"
            )
    else:
        raise TypeError(
            f"{place} must be a tensor, (inputs, labels) or a dict of a model's arguments, got {type(inputs).__name__}"
            ": give the dataset a transform or a tokenizer that makes tensors"
        )
    labels = None if targets is None else _as_targets(targets, rows, place)
    return Batch(arguments, keywords, labels, rows, None if ids is None else _as_ids(ids, rows, place))


def _as_input(value: object) -> object:
    """Arrays and nested lists of numbers as tensors; other values as they are."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return view("data", value)
    if isinstance(value, list):
        try:
            array = np.asarray(value)
        except ValueError:
            raise ValueError("data must hold lists of one length, got a ragged one: pass padding=True") from None
        return as_tensor(value) if array.dtype.kind in "fiub" else value
    return value


def _as_targets(targets: object, rows: int, place: str) -> Tensor:  # [rows] int64
    hint = "leave out labels that are not classes, for instance with (inputs for inputs, _ in loader)"
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "fiub":
        targets = view("labels", targets)
    if isinstance(targets, list) and targets and all(type(label) is int for label in targets):
        targets = torch.tensor(targets, device="cpu")
    if not isinstance(targets, Tensor):
        texts = isinstance(targets, (list, tuple, np.ndarray)) and len(targets) and isinstance(targets[0], str)
        number = "number the classes first (class_names.index(label), or numpy.unique with return_inverse), or "
        kind = f"{type(targets).__name__}{' of str' if texts else ''}"
        raise TypeError(f"labels in {place} must be a tensor of integers, got {kind}: {number if texts else ''}{hint}")
    if targets.shape != (rows,) or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        several = " (a model that takes several inputs needs a dict)" if targets.dim() > 1 else ""
        raise ValueError(
            f"labels in {place} must be integers of shape ({rows},), got {targets.dtype} of shape "
            f"{shape_text(targets.shape)}{several}: {hint}"
        )
    return as_labels("labels", targets.detach().cpu(), torch.device("cpu"))


def _as_ids(ids: object, rows: int, place: str) -> Ids:
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        ids = view("ids", ids)
    elif isinstance(ids, (list, tuple, np.ndarray)):
        listed = list(ids)
        if all(isinstance(value, str) for value in listed):
            ids = tuple(map(str, listed))
        elif all(type(value) is int for value in listed):
            ids = torch.tensor(listed, device="cpu")
    if isinstance(ids, Tensor) and ids.shape == (rows,) and not (ids.is_floating_point() or ids.is_complex()):
        if ids.dtype != torch.bool:
            return as_labels("ids", ids.detach().cpu(), torch.device("cpu"))
    elif isinstance(ids, tuple) and len(ids) == rows and all(isinstance(value, str) for value in ids):
        return ids
    raise ValueError(
        f"ids in {place}, the third part, must be {rows} integers or texts that name the rows, got "
        f"{type(ids).__name__}: leave it out, or pass a dict for a model that takes several inputs"
    )
