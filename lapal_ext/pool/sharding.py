"""A pool whose rows are shared by several processes of a torch.distributed group; one process is a group of one.

``Ranks`` are the processes and what they send each other: they go on together, or all of them stop. ``Shard`` is where
the rows are. Without a group, both answer without a message or a copy.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise

import torch
from torch import Tensor, distributed

from lapal_ext.errors import RankError
from lapal_ext.validation.tensors import STORAGE_DTYPES

_TEXT = 400  # bytes of an error's message that the other ranks are told
_ADD, _COLLECT, _DONE = range(3)
_NO_ROWS = -1


class Ranks:
    """The processes that make one selection together, this one among them.

    Before every message the ranks tell each other that they are well and what they are about to send. So an error on
    one rank is an error on all of them, at their next message and with its text, and ranks that were called with
    different arguments are told so instead of waiting for each other. A rank whose process has died is noticed by the
    process group: at once where its connections close, else after the group's timeout.

    Args:
        group: of gloo, nccl or another backend that can add and gather; None for this process alone.

    Attributes:
        rank: of this process, from zero.
        size: how many processes there are.

    Raises:
        TypeError: no process group, or one that this process is not in.
    """

    def __init__(self, group: object = None) -> None:
        self.rank, self.size = 0, 1
        if group is None:
            return
        if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
            raise TypeError(
                f"group must be a torch.distributed process group that this process is in, got {type(group).__name__}"
            )
        self._group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        on_gpu = "nccl" in distributed.get_backend(group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make an error of the body on one rank an error on all: elsewhere a RankError with its text.

        The ranks wait for each other at the end, so that none returns a result that another has not.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
            self._synchronize(_DONE, 0)
            # Threads of gloo still release the last message, for which they need the interpreter. A process that ends
            # now may be aborted by them. A barrier carries no tensors and waits without holding the interpreter.
            with _lost_rank():
                distributed.barrier(self._group)
        except RankError:
            raise
        except (Exception, KeyboardInterrupt) as error:  # Ctrl-C in a notebook ends no process
            with suppress(RankError):
                self._synchronize(_DONE, 0, error)
            raise

    def add(self, value: Tensor) -> Tensor:
        """Sum of the values of all ranks, the same bits on each."""
        if self.size == 1:
            return value
        self._synchronize(_ADD, value.numel())
        total = value.to(self._device, copy=True).contiguous()
        if total.numel() > 0:
            with _lost_rank():
                distributed.all_reduce(total, group=self._group)
        return total.to(value.device)

    def collect(self, value: Tensor) -> Tensor:  # [size, *shape]
        """Values of all ranks, in their order."""
        if self.size == 1:
            return value[None]
        self._synchronize(_COLLECT, value.numel())
        return self._gathered(value)

    def from_first(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """What rank 0 computes, of the shape and the dtype of ``like``; the others do not call it."""
        return self.add(compute() if self.rank == 0 else torch.zeros_like(like))

    def agree(self, **values: object) -> None:
        """Raise ValueError on all ranks unless the values are the same on all; the first that is not is named.

        Tensors are compared by their bits, anything else by its text.
        """
        if self.size == 1:
            return
        numbers = self.collect(torch.tensor([_digest(value) for value in values.values()]))  # [size, values]
        for number, name in enumerate(values):
            others = (numbers[:, number] != numbers[0, number]).nonzero()
            if len(others) > 0:
                raise ValueError(
                    f"{name} must be the same on every rank, rank {int(others[0])} has another than rank 0"
                )

    def _synchronize(self, kind: int, numel: int, error: BaseException | None = None) -> None:
        """Wait until every rank is here, and raise RankError unless all are well and about to send the same."""
        text = b"" if error is None else _text(error)
        states = self._gathered(torch.tensor([int(error is not None), kind, numel]))
        failed = states[:, 0].nonzero()[:, 0].tolist()
        if failed:
            letters = torch.zeros(_TEXT, dtype=torch.uint8)
            letters[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
            texts = self._gathered(letters)
            reasons = [
                f"rank {rank} stopped with {bytes(texts[rank].tolist()).rstrip(bytes(1)).decode(errors='ignore')}"
                for rank in failed
            ]
            raise RankError("; ".join(reasons))
        if not bool((states == states[0]).all()):
            raise RankError("the ranks of group must all be called with the same arguments, and were not")

    def _gathered(self, value: Tensor) -> Tensor:  # [size, *shape]
        parts = [torch.empty_like(value, device=self._device) for _ in range(self.size)]
        with _lost_rank():
            distributed.all_gather(parts, value.to(self._device).contiguous(), group=self._group)
        return torch.stack(parts).to(value.device)


class Shard:
    """The rows of a pool that are in this process.

    A pick is the number of a row among the candidates of all shards, in rank order, and so the same on every rank. What
    belongs to rows (logits, utilities, which are taken) is kept in the process that has them.

    Args:
        ranks: the processes.
        bounds: the first pick of every rank, and the number of all.

    Attributes:
        total: rows of all shards.
        largest: rows of the largest shard.
        numbers: the picks of the rows that are here.
    """

    def __init__(self, ranks: Ranks, bounds: Sequence[int]) -> None:
        self._ranks, self.total = ranks, bounds[-1]
        self.largest = max(stop - start for start, stop in pairwise(bounds))
        self.numbers = slice(bounds[ranks.rank], bounds[ranks.rank + 1])

    @property
    def _is_whole(self) -> bool:
        return self._ranks.size == 1

    def here(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [m] int64, m <= k
        """Row numbers in this process, of those picks that are here."""
        return picks if self._is_whole else picks[self._is_here(picks)] - self.numbers.start

    def gather(
        self,
        values: Tensor,  # [n, ...] of the rows that are here
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, ...]
        """What belongs to some picks, wherever they are: each rank adds its own values to zeros."""
        if self._is_whole:
            return values[picks]
        result = values.new_zeros(len(picks), *values.shape[1:])
        result[self._is_here(picks)] = values[self.here(picks)]
        return self._ranks.add(result)

    def best(
        self,
        rows: Tensor,  # [k] int64, the best that are here, best first, ties to the lowest
        utilities: Tensor,  # [k], theirs
        taken: Tensor,  # [n] bool, the winners are set in place
        count: int,  # at most the free rows of all shards
    ) -> tuple[Tensor, Tensor]:  # [count] int64, [count]
        """The best picks of all shards and their utilities, from the ``count`` best rows of each.

        In shards: one message of 16 bytes per pick and rank.
        """
        if self._is_whole:
            picks, best = rows[:count], utilities[:count]
            taken[picks] = True
            return picks, best
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

    def best_of_one_each(
        self,
        row: Tensor,  # [] int64, -1 where none is free
        utility: Tensor,  # []
        taken: Tensor,  # [n] bool
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1]
        """The best pick of all shards, from the one row that an op has taken in each; it is freed where it lost."""
        if self._is_whole:
            return row[None], utility[None]
        chosen = row[None] >= 0
        rows = row[None][chosen]
        taken[rows] = False
        return self.best(rows, utility[None][chosen], taken, 1)

    def draw(
        self,
        row: Tensor,  # [] int64, the pick among the rows that are here, -1 where all their weights are zero
        weights: Tensor,  # [n]
        threshold: Tensor,  # []
    ) -> int:
        """The pick at which the running sum of all weights exceeds threshold times its total, -1 if that is zero."""
        if self._is_whole:
            return int(row)
        # What ``row`` says holds for this shard alone.
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
        """Sum over the shards of something that each has added up."""
        return self._ranks.add(value)

    def _is_here(self, picks: Tensor) -> Tensor:  # [k] bool
        return (picks >= self.numbers.start) & (picks < self.numbers.stop)


def common_layout(
    ranks: Ranks,
    features: Tensor,  # [n, D] of a storage dtype
) -> tuple[Tensor, list[int]]:
    """The rows of this rank in the dtype of all, which one without rows takes over; and the first row of every rank.

    Raises:
        ValueError: the ranks have rows of several dtypes.
    """
    if ranks.size == 1:
        return features, [0, len(features)]
    dtype = STORAGE_DTYPES.index(features.dtype) if len(features) > 0 else _NO_ROWS
    counts, dtypes = ranks.collect(torch.tensor([len(features), dtype])).T.tolist()
    first_ranks = {number: dtypes.index(number) for number in dtypes if number != _NO_ROWS}  # in the order of the ranks
    if len(first_ranks) > 1:
        rows = " and ".join(f"{STORAGE_DTYPES[number]} on rank {rank}" for number, rank in first_ranks.items())
        raise ValueError(f"pool must have one dtype on all ranks, got {rows}")
    for number in first_ranks:
        features = features.to(STORAGE_DTYPES[number])
    return features, [0, *accumulate(counts)]


def _digest(value: object) -> int:
    """A number of 64 bits that is the same for equal values alone, as far as anybody will ever see."""
    digest = hashlib.sha256()
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(value).encode(errors="replace"))
    return int.from_bytes(digest.digest()[:8], "big", signed=True)


def _text(error: BaseException) -> bytes:
    """What the other ranks are told, at most as long as a message; an error may have no text that can be sent."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 whatever its __str__ raises
        text = type(error).__name__
    return text.encode(errors="replace")[:_TEXT]


@contextmanager
def _lost_rank() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"a rank of group no longer answers: {error}") from error
