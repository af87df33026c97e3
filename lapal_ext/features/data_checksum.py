"""A checksum of the data that features come from, so that a file of features is not continued with other data.

It compares the inputs and labels of some rows, evenly spread from the first to the last: of tensors 1,024 rows, or as
many as take 16 MiB but at least 32, and of other data that are read by number 32 items, since an item may be an image
that has to be decoded. Of fewer rows it compares all. Rows that are not in the file yet may change. Data that can only
be read in their order (iterators, an ``IterableDataset``) are not compared, since reading them here would take rows
away from the extraction.
"""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lapal_ext.entries import outside_inference_mode
from lapal_ext.features.sources import is_labelled_pair, read_by
from lapal_ext.pool.checksum import COMPARED, spread

_ITEMS = 32
_ARRAY_BYTES = 1 << 24
_DIGITS = 8  # of a row


class DataChecksum:
    """Compares data with a checksum that was made earlier.

    Args:
        data: what ``extract`` takes.
    """

    def __init__(self, data: Any) -> None:
        self._data = data

    @cached_property
    def value(self) -> str | None:
        """Eight digits for each of the rows compared; None if these data cannot be compared."""
        return _checksum(self._data)

    def is_of(self, saved: str | None, done: int) -> bool:
        """Whether these data may be those that gave ``saved``, as far as the first ``done`` rows.

        Data whose items are drawn anew at every read, as random augmentations are, cannot be told apart: they are
        recognised by a second read that gives something else.
        """
        if saved is None or self.value is None or self._begins_alike(self.value, saved, done):
            return True
        again = _checksum(self._data)
        return again is None or not self._begins_alike(self.value, again, done)

    def _begins_alike(self, one: str, other: str, done: int) -> bool:
        count = len(one) // _DIGITS
        columns = _columns(self._data)
        if columns or not isinstance(self._data, (list, tuple)):  # of batches, whose rows are not known
            rows = len(columns[0]) if columns else len(getattr(self._data, "dataset", self._data))
            numbers = spread(rows, count)
            count = sum(number < done for number in numbers)
        return len(one) == len(other) and one[: _DIGITS * count] == other[: _DIGITS * count]


@outside_inference_mode
def _checksum(data: Any) -> str | None:
    """Checksum of any data; None if they can only be read in order, or hold what has no bits to compare."""
    if columns := _columns(data):
        return _of_arrays(columns)
    if isinstance(data, DataLoader):
        return None if isinstance(data.dataset, IterableDataset) else _of_items(data.dataset, data)
    by_number = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if isinstance(data, (IterableDataset, Mapping)) or not by_number:
        return None
    return _of_items(data, None)


def _columns(data: Any) -> Sequence[Any]:
    """Arrays with one entry per row that make up the data; none where items are read by number, or in order."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, (Tensor, np.ndarray)):
        return (data,)
    if type(data) is TensorDataset:
        return data.tensors
    if isinstance(data, Mapping):
        return [value for value in data.values() if isinstance(value, (Tensor, np.ndarray)) and value.ndim > 0]
    return data if is_labelled_pair(data) else ()


def _of_arrays(arrays: Sequence[Any]) -> str | None:
    values = [array if isinstance(array, Tensor) else torch.as_tensor(array, device="cpu") for array in arrays]
    row_bytes = sum(value.element_size() * value.shape[1:].numel() for value in values)
    numbers = spread(len(values[0]), max(_ITEMS, min(COMPARED, _ARRAY_BYTES // max(1, row_bytes))))
    return _joined([_digits([value[number] for value in values]) for number in numbers])


def _of_items(items: Any, loader: "DataLoader[Any] | None") -> str | None:
    """Checksum of items that are read by number.

    A loader with processes of its own reads them in one of these: a file that a dataset opens at its first read must
    not be open before its processes start.
    """
    options: dict[str, Any] = {}
    if loader is not None and loader.num_workers > 0:
        options = {
            "num_workers": 1,
            "multiprocessing_context": loader.multiprocessing_context,
            "worker_init_fn": loader.worker_init_fn,
        }
    generator = torch.Generator(device="cpu")
    generator.seed()
    numbered = _Numbered(items, spread(len(items), _ITEMS))
    reader: DataLoader[Any] = DataLoader(numbered, batch_size=None, generator=generator, collate_fn=_digits, **options)
    with _other_draws():
        parts = list(read_by(reader))
    return _joined(parts)


def sha256(inputs: Any) -> str | None:
    """SHA-256 of a batch of inputs; None if a part of it has no bits to compare."""
    digest = hashlib.sha256()
    try:
        _add(digest, inputs)
    except TypeError:
        return None
    return digest.hexdigest()


class _Numbered(Dataset[Any]):
    """Some of the items, as they are."""

    def __init__(self, items: Any, numbers: Sequence[int]) -> None:
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: int) -> Any:
        try:
            return self._items[self._numbers[place]]
        except Exception:  # noqa: BLE001 the extraction raises it, after the rows before it
            return _Unreadable()


class _Unreadable:
    """An item that cannot be read, and so has no bits to compare."""


def _joined(parts: Sequence[str | None]) -> str | None:
    known = [part for part in parts if part is not None]
    return "".join(known) if len(known) == len(parts) else None


def _digits(item: Any) -> str | None:
    """Hash of an item; None if a part of it has no bits to compare."""
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    try:
        _add(digest, item)
    except TypeError:
        return None
    return digest.hexdigest()


def _add(digest: "hashlib._Hash | hashlib.blake2b", value: Any) -> None:
    """Add a value and its type to a hash.

    Raises:
        TypeError: it holds something without bits to compare.
    """
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        if plain.layout != torch.strided or plain.is_quantized:
            raise TypeError
        digest.update(f"tensor {plain.dtype} {list(plain.shape)}".encode())
        digest.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (bytes, str, bool, int, float, complex)) or value is None:
        digest.update(f"{type(value).__name__} {value!r} ".encode(errors="replace"))
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key, part in value.items():
            _add(digest, key)
            _add(digest, part)
    elif isinstance(value, (tuple, list)):
        digest.update(f"sequence {len(value)}".encode())
        for part in value:
            _add(digest, part)
    elif isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array_interface__"):  # an image of PIL
        array = np.ascontiguousarray(value)
        if array.dtype.hasobject:
            raise TypeError
        digest.update(f"array {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    else:
        raise TypeError


@contextmanager
def _other_draws() -> Iterator[None]:
    """Items that are drawn at random are drawn anew, and take nothing from the global generators."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 the one that data sets use
    try:
        torch.default_generator.seed()
        random.seed()
        np.random.seed()  # noqa: NPY002
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
