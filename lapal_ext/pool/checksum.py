"""A checksum of a pool, with which a selection that goes on later recognises its rows.

Rows are numbers in a state or a label file, so answers belong to other rows if the pool is another one, has changed or
has another order. The checksum holds the number of rows, D, the dtype, and the bits of ``COMPARED`` rows, evenly spread
from the first to the last; of a pool with no more rows than that, those of all. So a pool that was sorted, shuffled or
computed again, or in which rows were inserted or left out, has another checksum. A change of single rows is only
certain to be noticed where all of them are compared.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.pool.sharding import Ranks, Shard
from lapal_ext.validation.tensors import STORAGE_DTYPES, shape_text

COMPARED = 1024
"""Rows whose bits are compared, at most 1,024 random reads of a file whatever its size."""

_MASK = 2**63 - 1


class PoolChecksum(NamedTuple):
    """The numbers by which a pool is recognised; equal for a tensor, an array and a file, and for any number of ranks.

    ``content`` depends on the rows compared, and ``order`` on their order too.
    """

    rows: int
    columns: int
    dtype: str
    content: int
    order: int

    def difference(self, now: "PoolChecksum") -> str | None:
        """What is different in another pool, to follow the name of the pool in an error; None if nothing is."""
        if self == now:
            return None
        changes = [
            f"{getattr(now, name)} {words} and not {getattr(self, name)}"
            for name, words in (("rows", "rows"), ("columns", "columns"))
            if getattr(self, name) != getattr(now, name)
        ]
        if self.dtype != now.dtype:
            changes.append(f"dtype {now.dtype} and not {self.dtype}")
        if changes:
            return f"has {', '.join(changes)}"
        if self.content == now.content:
            return "has the same rows in another order"
        if self.rows <= COMPARED:
            return "has rows with other values"
        return f"has rows with other values, or in another order, among the {COMPARED} of {self.rows} rows compared"

    def as_tensor(self) -> Tensor:  # [5] int64
        """All of it as numbers, for a state dict."""
        dtypes = [str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES]
        numbers = [self.rows, self.columns, dtypes.index(self.dtype), self.content, self.order]
        return torch.tensor(numbers, device="cpu")

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> "PoolChecksum":
        """Inverse of ``as_tensor``.

        Raises:
            ValueError: these are no numbers of a checksum.
        """
        if len(numbers) != len(cls._fields) or not 0 <= numbers[2] < len(STORAGE_DTYPES):
            raise ValueError(f"not a checksum of a pool: {list(numbers)}")
        rows, columns, dtype, content, order = numbers
        return cls(rows, columns, str(STORAGE_DTYPES[dtype]).removeprefix("torch."), content, order)


def spread(total: int, most: int) -> list[int]:
    """At most so many of ``range(total)``, evenly spread, with the first and the last."""
    count = min(total, most)
    return [place * (total - 1) // max(1, count - 1) for place in range(count)]


def checksum(
    features: Tensor,  # [n, D], the rows in this process
    shard: Shard | None = None,  # of all rows, candidates or not; by default this process has all
    ranks: Ranks | None = None,
) -> PoolChecksum:
    """Checksum of the rows of all ranks; the same on each.

    Raises:
        ValueError: the pool has no columns, so that its rows cannot be told apart.
    """
    if features.shape[1] == 0:
        raise ValueError(f"pool must have a column or more, got shape {shape_text(features.shape)}")
    ranks = Ranks() if ranks is None else ranks
    shard = Shard(ranks, [0, len(features)]) if shard is None else shard
    total = shard.total
    digests = row_digests(features, spread(total, COMPARED), shard, ranks)
    content = int(digests.sum()) & _MASK
    order = int.from_bytes(hashlib.sha256(digests.numpy().tobytes()).digest()[:8], "little") & _MASK
    return PoolChecksum(total, features.shape[1], str(features.dtype).removeprefix("torch."), content, order)


def row_digests(
    features: Tensor,  # [n, D], the rows in this process
    rows: Sequence[int],  # [k], of the rows of all ranks
    shard: Shard,  # of all rows
    ranks: Ranks,
) -> Tensor:  # [k] int64
    """63 bits of a hash of each of these rows, the same on every rank; other rows practically never have equal ones."""
    numbers = torch.tensor(rows, dtype=torch.int64, device="cpu")
    digests = torch.zeros(len(numbers), dtype=torch.int64, device="cpu")
    here = (numbers >= shard.numbers.start) & (numbers < shard.numbers.stop)
    places = here.nonzero()[:, 0]
    if len(places) > 0:
        own = features.detach()[(numbers[places] - shard.numbers.start).to(features.device)].cpu()
        digests[places] = torch.tensor(_digests(own), device="cpu")
    return ranks.add(digests)


def _digests(
    rows: Tensor,  # [n, ...] on the CPU
) -> list[int]:
    if len(rows) == 0:
        return []
    content = rows.detach().contiguous().view(len(rows), -1).view(torch.uint8).numpy().tobytes()
    size = len(content) // len(rows)
    return [
        int.from_bytes(hashlib.blake2b(content[start : start + size], digest_size=8).digest(), "little") & _MASK
        for start in range(0, len(content), size)
    ]
