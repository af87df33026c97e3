"""A pool whose rows are distributed over the processes of a torch.distributed group; one process is a group of one.

``Ranks`` has the communication between the processes: an error in one stops all of them. ``Shard`` maps picks to the
processes that have the rows. Without a group, neither sends a message or makes a copy.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise

import torch
from torch import Tensor, distributed

from lapal_ext.errors import RankError
from lapal_ext.validation.scalars import type_name
from lapal_ext.validation.tensors import STORAGE_DTYPES

_TEXT = 400  # bytes of an error message that are sent to the other ranks
_ADD, _COLLECT, _DONE = range(3)
_NO_ROWS = -1


class Ranks:
    """The processes that make one selection together, including this one.

    Before every message the ranks exchange whether they have failed and what they send next. So an error on one rank
    raises a RankError with its text on all others, at their next message. Ranks that were called with different
    arguments also raise, instead of waiting for each other. The process group detects a rank whose process has died: at
    once if its connections close, else after the timeout of the group.

    Args:
        group: of gloo, nccl or another backend that can add and gather; None for a single process.

    Attributes:
        rank: of this process, from zero.
        size: number of processes.

    Raises:
        TypeError: ``group`` is not a process group, or this process is not in it.
    """

    def __init__(self, group: object = None) -> None:
        self.rank, self.size = 0, 1
        if group is None:
            return
        if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
            raise TypeError(
                f"group must be a torch.distributed process group that this process is in, got {type_name(group)}"
            )
        self._group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        on_gpu = "nccl" in distributed.get_backend(group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the body raises on one rank, raise a RankError with the text of the error on all others.

        The ranks wait for each other at the end, so that either all of them return a result or none does.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
            self._synchronize(_DONE, 0)
            # Threads of gloo may still be releasing the last message, which needs the interpreter lock, and may abort a
            # process that ends now. A barrier has no tensors and waits without holding the lock.
            with _lost_rank():
                distributed.barrier(self._group)
        except RankError:
            raise
        # Of any kind, as the process may live on: Ctrl-C and sys.exit do not end a notebook, and asyncio may cancel one
        # task alone. Ranks that are not told of it would take the next call of this one for the rest of the last.
        except BaseException as error:
            with suppress(RankError):
                self._synchronize(_DONE, 0, error)
            raise

    def add(self, value: Tensor) -> Tensor:
        """Sum of the values of all ranks, equal to the bit on each."""
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
        """Call ``compute`` on rank 0 and return its result on all ranks; it has the shape and dtype of ``like``."""
        return self.add(compute() if self.rank == 0 else torch.zeros_like(like))

    def agree(self, **values: object) -> None:
        """Raise ValueError on all ranks unless each value is the same on all; the error names the first that differs.

        Tensors are compared by their bits, other values by their repr.
        """
        if self.size == 1:
            return
        numbers = self.collect(
            torch.tensor([_digest(value) for value in values.values()], device="cpu")
        )  # [size, values]
        for number, name in enumerate(values):
            others = (numbers[:, number] != numbers[0, number]).nonzero()
            if len(others) > 0:
                raise ValueError(
                    f"{name} must be the same on every rank, rank {int(others[0])} has another value than rank 0"
                )

    def _synchronize(self, kind: int, numel: int, error: BaseException | None = None) -> None:
        """Wait for every rank, and raise RankError if one has failed or if they are about to send different things."""
        text = b"" if error is None else _text(error)
        states = self._gathered(torch.tensor([int(error is not None), kind, numel], device="cpu"))
        failed = states[:, 0].nonzero()[:, 0].tolist()
        if failed:
            letters = torch.zeros(_TEXT, dtype=torch.uint8, device="cpu")
            letters[: len(text)] = torch.tensor(list(text), dtype=torch.uint8, device="cpu")
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
    """The part of a pool that is in this process.

    A pick is the number of a row among the candidates of all shards, in rank order, so it is the same on every rank.
    Values per row (logits, utilities, the mask of taken rows) are kept in the process that has the row.

    Args:
        ranks: the processes.
        bounds: the first pick of every rank, then the total number of candidates.

    Attributes:
        total: number of rows of all shards.
        largest: number of rows of the largest shard.
        numbers: the picks of the rows in this process, a slice.
    """

    def __init__(self, ranks: Ranks, bounds: Sequence[int]) -> None:
        self._ranks, self.total = ranks, bounds[-1]
        self.largest = max(stop - start for start, stop in pairwise(bounds))
        self.numbers = slice(bounds[ranks.rank], bounds[ranks.rank + 1])

    @property
    def is_whole(self) -> bool:
        """Whether this process has all rows."""
        return self._ranks.size == 1

    def here(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [m] int64, m <= k
        """Local row numbers of those picks that are in this process."""
        return picks if self.is_whole else picks[self._is_here(picks)] - self.numbers.start

    def gather(
        self,
        values: Tensor,  # [n, ...] of the rows in this process
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, ...]
        """Values of picks in any process, as a sum to which each rank contributes those of its own rows."""
        if self.is_whole:
            return values.index_select(0, picks)
        result = values.new_zeros(len(picks), *values.shape[1:])
        result[self._is_here(picks)] = values[self.here(picks)]
        return self._ranks.add(result)

    def best(
        self,
        rows: Tensor,  # [k] int64, the best rows in this process, best first, ties to the lowest
        utilities: Tensor,  # [k], of ``rows``
        taken: Tensor,  # [n] bool, the picks are set in place
        count: int,  # at most the free rows of all shards
    ) -> tuple[Tensor, Tensor]:  # [count] int64, [count]
        """The best picks of all shards and their utilities, from the ``count`` best rows of each.

        With several ranks, each sends one message of 16 bytes per pick.
        """
        if self.is_whole:
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

    def lowest_of_best(
        self,
        rows: Tensor,  # [m] int64 of this process, ascending
        utilities: Tensor,  # [m] float64 >= 0
        taken: Tensor,  # [n] bool, the pick is set in place
        tie: float,
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1]
        """The lowest pick with at least the share ``tie`` of the largest utility of all shards, and its utility.

        ``rows`` holds every row of this process that may be it. With several ranks, each sends one number, then two.
        """
        if self.is_whole:
            first = (utilities >= tie * utilities.amax()).int().argmax()[None]
            taken[rows[first]] = True
            return rows[first], utilities[first]
        own = utilities.amax() if len(rows) > 0 else utilities.new_tensor(-torch.inf)
        tied = utilities >= tie * self._ranks.collect(own).amax()
        sent = utilities.new_full((2,), torch.inf)
        if bool(tied.any()):
            first = tied.int().argmax()
            sent = torch.stack([(rows[first] + self.numbers.start).double(), utilities[first]])
        received = self._ranks.collect(sent)
        winner = received[received[:, 0].argmin()]
        pick = winner[:1].long()
        taken[self.here(pick)] = True
        return pick, winner[1:]

    def best_of_candidates(
        self,
        row: Tensor,  # [] int64, -1 if no row is free
        utility: Tensor,  # []
        taken: Tensor,  # [n] bool
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1]
        """The best pick of all shards, from the one row that an op has taken in each; the other rows are freed."""
        if self.is_whole:
            return row[None], utility[None]
        chosen = row[None] >= 0
        rows = row[None][chosen]
        taken[rows] = False
        return self.best(rows, utility[None][chosen], taken, 1)

    def draw(
        self,
        row: Tensor,  # [] int64, the row drawn in this process, -1 if all its weights are zero
        weights: Tensor,  # [n]
        threshold: Tensor,  # []
    ) -> Tensor:  # [1] int64
        """The pick at which the running sum of all weights exceeds threshold times its total, -1 if that is zero."""
        if self.is_whole:
            return row[None]
        # ``row`` was drawn from this shard alone.
        running = weights.double().cumsum(0)
        totals = self._ranks.collect(running[-1] if len(running) else running.new_zeros(()))
        ends = [0.0, *accumulate(totals.tolist())]
        if not ends[-1] > 0.0:
            return row.new_full((1,), -1)
        level = min(float(threshold) * ends[-1], math.nextafter(ends[-1], 0.0))  # below the largest running sum
        owner = next(rank for rank, end in enumerate(ends[1:]) if end > level)
        pick = row.new_zeros(1)
        if owner == self._ranks.rank:
            pick = (ends[owner] + running > level).int().argmax()[None] + self.numbers.start
        return self._ranks.add(pick)

    def add(self, value: Tensor) -> Tensor:
        """Sum of the values of all shards."""
        return self._ranks.add(value)

    def _is_here(self, picks: Tensor) -> Tensor:  # [k] bool
        return (picks >= self.numbers.start) & (picks < self.numbers.stop)


def common_layout(
    ranks: Ranks,
    features: Tensor,  # [n, D] of a storage dtype
) -> tuple[Tensor, list[int]]:
    """Return the rows of this rank in the dtype of all ranks, and the first row number of every rank, then the total.

    A rank without rows gets the dtype of the others.

    Raises:
        ValueError: the ranks have rows of several dtypes.
    """
    if ranks.size == 1:
        return features, [0, len(features)]
    dtype = STORAGE_DTYPES.index(features.dtype) if len(features) > 0 else _NO_ROWS
    counts, dtypes = ranks.collect(torch.tensor([len(features), dtype], device="cpu")).T.tolist()
    first_ranks = {number: dtypes.index(number) for number in dtypes if number != _NO_ROWS}  # in the order of the ranks
    if len(first_ranks) > 1:
        rows = " and ".join(f"{STORAGE_DTYPES[number]} on rank {rank}" for number, rank in first_ranks.items())
        raise ValueError(f"pool must have one dtype on all ranks, got {rows}")
    for number in first_ranks:
        features = features.to(STORAGE_DTYPES[number])
    return features, [0, *accumulate(counts)]


def _digest(value: object) -> int:
    """64 bits of a hash: equal values have equal numbers, and different values practically never do."""
    digest = hashlib.sha256()
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(value).encode(errors="replace"))
    return int.from_bytes(digest.digest()[:8], "big", signed=True)


def _text(error: BaseException) -> bytes:
    """The text of an error for the other ranks, at most ``_TEXT`` bytes; ``str`` of an error may raise itself."""
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
        raise RankError(f"a rank of group no longer responds: {error}") from error
