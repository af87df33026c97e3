"""What every acquisition offers to the selection loop."""

from typing import Protocol

from torch import Tensor

from lapal_ext.pool.sharding import Shard


class Scorer(Protocol):
    """State of one selection: which rows are best under the labels absorbed so far.

    Picks are those of the ``Pool`` it was made for, the same on all ranks where it is in shards. What ``pick`` answers
    depends on the labels absorbed, in their order, and on the rows that are taken, but not on earlier picks: whoever
    asks again, undoes an answer or resumes from a file is asked the same question, to the bit, even by an acquisition
    that draws.
    """

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """Take the ``count`` best free rows: int64 [count] indices, best first, and their utilities [count].

        Before the next call all of them are absorbed or released.
        """

    def release(self, picks: Tensor) -> None:
        """Make rows free again."""

    def withhold(self, picks: Tensor) -> None:
        """Make rows taken."""

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """Absorb the labels [k] of rows [k], in order."""

    def predictive(self, picks: Tensor) -> Tensor:
        """Probabilities [k, C] of rows [k] under the labels absorbed so far, with the selection's link."""


def check_utilities(
    utilities: Tensor,  # [k]
    name: str,
) -> None:
    """Raise ValueError where a utility is not a number; ``name`` is the argument that the acquisition came in."""
    if bool(utilities.isnan().any()):
        raise ValueError(f"{name} gave a utility that is not a number; nothing was selected")


def best_first(
    utilities: Tensor,  # [n] of the rows that are here
    taken: Tensor,  # [n] bool, the winners are set in place
    count: int,
    shard: Shard,
) -> tuple[Tensor, Tensor]:  # [count] int64, [count]
    """Take the ``count`` largest free utilities of all shards; ties go to the lowest pick, NaN before all.

    The rows that are taken stand behind all others, even behind those with a utility of minus infinity.
    """
    order = utilities.sort(descending=True, stable=True).indices
    rows = order[taken[order].sort(stable=True).indices[:count]]
    return shard.best(rows, utilities[rows], taken, count)
