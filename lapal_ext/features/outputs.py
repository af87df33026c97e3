"""What a model or a layer returns: the tensors in it, a field of it, and whether a tensor is what a layer gave."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

_DEPTH = 4  # of containers in one another
_ROWS, _INPUTS, _POSITIONS, _VALUES = 16, 4, 4, 1 << 16  # of one sample
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-4}  # relative to the largest value; of softmax and log-softmax
_HALF_TOLERANCE = 0.02
_INNER = re.compile(
    r"(^|\.)\w*(cache|cache_params|past_key_values|hidden_states|attentions)(\.|$)|\.layers\.\d+\.(keys|values)$"
)
_FEWEST_VALUES = 6  # by chance the order of fewer could be the same


def fields(value: object) -> dict[str, object] | None:
    """The named parts of a mapping, a sequence, or an object with attributes; None of anything else."""
    if isinstance(value, Mapping):
        return {str(name): part for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if isinstance(value, (tuple, list)):
        return {str(number): part for number, part in enumerate(value)}
    if isinstance(value, (Tensor, nn.Module, type)):
        return None
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names += [slots] if isinstance(slots, str) else list(slots)
    found = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})
    return found or None


def named_tensors(value: object, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Tensor]]:
    """All tensors in a value, with names such as ``logits`` or ``0.logits``; "" for the value itself."""
    if isinstance(value, Tensor):
        yield name, value
    elif depth and (parts := fields(value)):
        for key, part in parts.items():
            yield from named_tensors(part, f"{name}.{key}".lstrip("."), depth - 1)


def results(value: object) -> list[Tensor]:
    """The tensors in what a model returns, without those that models of transformers return of their inner layers.

    A value in the cache of a language model with one key-value head has the numbers of the layer that made it.
    """
    tensors = list(named_tensors(value))
    outer = [tensor for name, tensor in tensors if not _INNER.search(name)]
    return outer or [tensor for _, tensor in tensors]


class Sample(NamedTuple):
    """A few rows of what a layer gives, copied before anything changes them in place."""

    shape: tuple[int, ...]
    values: Tensor  # [k, C]
    rows: int = _ROWS  # k at most

    @classmethod
    def of(cls, output: Tensor, *, channels_first: bool, rows: int = _ROWS) -> "Sample":
        """Read the first rows, and of each the first positions."""
        few = _few(output, channels_first=channels_first, rows=rows)
        return cls(tuple(output.shape), few.detach().clone(), rows)

    def returned_as(self, returned: Tensor, *, channels_first: bool) -> bool:
        """Whether ``returned`` has these values, or their softmax or log-softmax; the sigmoid of a single logit too."""
        other = self._aligned(returned, channels_first=channels_first)
        if other is None:
            return False
        own = self.values.to(other.device).double()
        with torch.autocast(other.device.type, enabled=False):
            forms = [own, own.softmax(1), own.log_softmax(1)] if own.shape[1] > 1 else [own, own.sigmoid()]
        kinds = (self.values.dtype, other.dtype)
        tolerance = max(_TOLERANCE.get(kind, _HALF_TOLERANCE) for kind in kinds)
        return any(_close(other.double(), form, tolerance) for form in forms)

    def orders(self, returned: Tensor, *, channels_first: bool) -> bool:
        """Whether ``returned`` is a rising function of each of these values, or the class of the largest one."""
        if not returned.is_floating_point():
            classes = self.values.argmax(1).to(returned.device)
            few = returned.reshape(-1)[: len(classes)]
            return returned.numel() == self.shape[0] == returned.shape[0] and bool((few == classes).all())
        other = self._aligned(returned, channels_first=channels_first)
        if other is None or other.numel() < _FEWEST_VALUES:
            return False
        order = self.values.to(other.device).flatten().argsort(stable=True)
        values = other.double().flatten()[order]
        slack = 1e-6 * float(values.abs().max())
        return bool((values.diff() >= -slack).all()) and bool(values[-1] > values[0] + slack)

    def _aligned(self, returned: Tensor, *, channels_first: bool) -> Tensor | None:  # [k, C]
        """The same rows of a tensor whose shape differs in sizes of one at most; None if it has another shape."""
        if not returned.is_floating_point() or [s for s in returned.shape if s != 1] != [
            s for s in self.shape if s != 1
        ]:
            return None
        return _few(returned.detach().reshape(self.shape), channels_first=channels_first, rows=self.rows)


def _few(output: Tensor, *, channels_first: bool, rows: int) -> Tensor:  # [k, C]
    """The first rows of [n, C], [n, positions..., C] or, with the channels first, [n, C, positions...]."""
    if sum(size != 1 for size in output.shape[1:]) <= 1:
        output = output.flatten(1)
    if channels_first and output.dim() > 2:
        output = output[:_INPUTS].flatten(2)[..., :_POSITIONS].movedim(1, -1)
    if output.dim() > 2:
        output = output[:_INPUTS].flatten(1, -2)[:, :_POSITIONS]
    columns = max(1, output.shape[-1])
    return output.reshape(-1, columns)[: max(2, min(rows, _VALUES // columns))]


def _close(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(value, expected, rtol=0.0, atol=tolerance * largest, equal_nan=True)
