"""Where the rows of a pool are: all in this process, or a part of them in each process of a group.

A pick is the number of a row among the candidates of all shards, in rank order, and so the same on every rank; what
belongs to rows (logits, utilities, which are taken) is kept where they are. Both classes answer alike, the one for a
single process without a message or a copy.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from lapal_ext.pool.ranks import Alone, Ranks
from lapal_ext.validation.tensors import STORAGE_DTYPES

_NO_ROWS = -1


def common_layout(
    ranks: Alone | Ranks,
    features: Tensor,  # [n, D] of a storage dtype
) -> tuple[Tensor, list[int]]:
    """The rows of this rank in the dtype of all, which one without rows takes over; and the first row of every rank.

    Raises:
        ValueError: the ranks have rows of several dtypes.
    """
    dtype = STORAGE_DTYPES.index(features.dtype) if len(features) > 0 else _NO_ROWS
    counts, dtypes = ranks.collect(torch.tensor([len(features), dtype])).T.tolist()
    first_ranks = {number: dtypes.index(number) for number in dtypes if number != _NO_ROWS}  # in the order of the ranks
    if len(first_ranks) > 1:
        rows = " and ".join(f"{STORAGE_DTYPES[number]} on rank {rank}" for number, rank in first_ranks.items())
        raise ValueError(f"pool must have one dtype on all ranks, got {rows}")
    for number in first_ranks:
        features = features.to(STORAGE_DTYPES[number])
    return features, [0, *accumulate(counts)]


class Whole:
    """All rows are here: a pick is the number of a row.

    Attributes:
        total: rows of all shards.
        largest: rows of the largest shard.
        numbers: the picks of the rows that are here.
    """

    def __init__(self, total: int) -> None:
        self.total = self.largest = total
        self.numbers = slice(0, total)

    def here(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k] int64
        """Numbers of the rows of ``picks`` that are in this process."""
        return picks

    def gather(
        self,
        values: Tensor,  # [n, ...] of the rows that are here
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, ...]
        """What belongs to some rows, wherever they are."""
        return values[picks]

    def best(
        self,
        rows: Tensor,  # [k] int64, the best that are here, best first, ties to the lowest
        utilities: Tensor,  # [k], theirs
        taken: Tensor,  # [n] bool, the winners are set in place
        count: int,  # at most the free rows of all shards
    ) -> tuple[Tensor, Tensor]:  # [count] int64, [count]
        """The best picks of all shards and their utilities, from the ``count`` best rows of each."""
        picks, best = rows[:count], utilities[:count]
        taken[picks] = True
        return picks, best

    def settle(
        self,
        row: Tensor,  # [] int64, -1 where none is free
        utility: Tensor,  # []
        taken: Tensor,  # noqa: ARG002 [n] bool
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1]
        """The best pick of all shards, from the one row that an op has taken in each: it is free again if it lost."""
        return row[None], utility[None]

    def draw(
        self,
        row: Tensor,  # [] int64, -1 where all weights are zero
        weights: Tensor,  # noqa: ARG002 [n]
        threshold: Tensor,  # noqa: ARG002 []
    ) -> int:
        """The pick at which the running sum of all weights exceeds threshold times its total, -1 if that is zero.

        ``row`` is the one among the rows that are here.
        """
        return int(row)

    def add(self, value: Tensor) -> Tensor:
        """Sum over the shards of something that each has added up."""
        return value


class Shard:
    """Some rows are here, those of the picks ``numbers``.

    Args:
        ranks: who has the others.
        bounds: the first pick of every rank, and the number of all.
    """

    def __init__(self, ranks: Ranks, bounds: Sequence[int]) -> None:
        self._ranks, self.total = ranks, bounds[-1]
        self.largest = max(stop - start for start, stop in pairwise(bounds))
        self.numbers = slice(bounds[ranks.rank], bounds[ranks.rank + 1])

    def here(self, picks: Tensor) -> Tensor:
        """See ``Whole``."""
        return picks[self._is_here(picks)] - self.numbers.start

    def gather(self, values: Tensor, picks: Tensor) -> Tensor:
        """See ``Whole``: the ranks add zeros to the values of the one that has them."""
        result = values.new_zeros(len(picks), *values.shape[1:])
        result[self._is_here(picks)] = values[self.here(picks)]
        return self._ranks.add(result)

    def best(self, rows: Tensor, utilities: Tensor, taken: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """See ``Whole``: one message of 16 bytes per pick and rank."""
        free = ~taken[rows]
        rows, best = rows[free][:count], utilities[free][:count]
        sent = torch.full((count, 2), -1.0, dtype=torch.float64, device=rows.device)
        sent[: len(rows), 0], sent[: len(rows), 1] = best.double(), (rows + self.numbers.start).double()
        received = self._ranks.collect(sent).flatten(0, 1)
        received = received[received[:, 1] >= 0]
        winners = received[received[:, 0].sort(descending=True, stable=True).indices[:count]]
        picks = winners[:, 1].long()
        taken[self.here(picks)] = True
        return picks, winners[:, 0].to(utilities.dtype)

    def settle(self, row: Tensor, utility: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Whole``."""
        chosen = row[None] >= 0
        rows = row[None][chosen]
        taken[rows] = False
        return self.best(rows, utility[None][chosen], taken, 1)

    def draw(self, row: Tensor, weights: Tensor, threshold: Tensor) -> int:
        """See ``Whole``; the draw of the op is for this shard alone and is not used."""
        running = weights.double().cumsum(0)
        totals = self._ranks.collect(running[-1] if len(running) else running.new_zeros(()))
        ends = [0.0, *accumulate(totals.tolist())]
        if not ends[-1] > 0.0:
            return -1
        level = min(float(threshold) * ends[-1], math.nextafter(ends[-1], 0.0))  # which some running sum exceeds
        owner = next(rank for rank, end in enumerate(ends[1:]) if end > level)
        pick = row.new_zeros(())
        if owner == self._ranks.rank:
            pick = (ends[owner] + running > level).int().argmax() + self.numbers.start
        return int(self._ranks.add(pick))

    def add(self, value: Tensor) -> Tensor:
        """See ``Whole``."""
        return self._ranks.add(value)

    def _is_here(self, picks: Tensor) -> Tensor:  # [k] bool
        return (picks >= self.numbers.start) & (picks < self.numbers.stop)
