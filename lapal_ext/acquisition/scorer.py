"""The interface between acquisitions and the selection loop."""

from typing import Protocol

from torch import Tensor

from lapal_ext.pool.sharding import Shard
from lapal_ext.rules import UpdateRule
from lapal_ext.validation.tensors import check_overflow


class Scorer(Protocol):
    """State of one selection: which rows are best under the labels absorbed so far.

    Picks are those of the ``Pool`` it was made for, and the same on all ranks. The result of ``pick`` depends on the
    absorbed labels, on their order and on the rows that are taken, but not on earlier picks. So it is the same, to the
    bit, when it is called again, after an undo or after resuming from a file, even if the acquisition draws.
    """

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """Take the ``count`` best free rows: int64 [count] indices, best first, and their utilities [count].

        The caller absorbs or releases all of them before the next call.
        """

    def release(self, picks: Tensor) -> None:
        """Make rows free again."""

    def withhold(self, picks: Tensor) -> None:
        """Make rows taken."""

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """Absorb the labels [k] of rows [k], in order."""

    def restart(self) -> None:
        """Forget all labels and make all rows free, as after its construction, to the bit."""

    def predictive(self, picks: Tensor) -> Tensor:
        """Probabilities [k, C] of rows [k] under the labels absorbed so far, with the selection's link."""


def check_utilities(
    utilities: Tensor,  # [k]
    name: str,
    *,
    named: bool = False,
) -> None:
    """Raise ValueError if a utility is NaN.

    Args:
        utilities: of the picks, [k]; minus infinity is allowed.
        name: the argument that holds the acquisition, for errors.
        named: whether it is one of our own. These give NaN only where numbers of the pool overflow.
    """
    if not bool(utilities.isnan().any()):
        return
    if named:
        check_overflow("pool", utilities)
    raise ValueError(f"{name} gave a utility that is not a number; nothing was selected")


def best_first(
    utilities: Tensor,  # [n] of the rows in this process
    taken: Tensor,  # [n] bool, the picks are set in place
    count: int,
    shard: Shard,
) -> tuple[Tensor, Tensor]:  # [count] int64, [count]
    """Take the ``count`` free rows of all shards with the largest utilities, and return their picks and utilities.

    Ties go to the lowest pick, and NaN counts as the largest. Taken rows come after all others, even after those with a
    utility of minus infinity.
    """
    order = utilities.sort(descending=True, stable=True).indices
    rows = order[taken[order].sort(stable=True).indices[:count]]
    return shard.best(rows, utilities[rows], taken, count)
