"""The choice at the end of every selection step."""

import torch
from torch import Tensor


def pick_best(
    utilities: Tensor,  # [N]
    taken: Tensor,  # [N] bool, the winner is set in place
) -> tuple[Tensor, Tensor]:
    """Take the largest utility among the rows that are free; the lowest index of equals, a NaN before all.

    Returns:
        int64 0-d index, -1 where no row is free, and its utility, 0-d, then -inf.
    """
    if utilities.numel() == 0:
        return taken.new_full((), -1, dtype=torch.int64), utilities.new_full((), -torch.inf)
    free = utilities.masked_fill(taken, -torch.inf)
    best = free.amax()
    # The mask again: every free utility may be -inf, as those of the rows that are taken.
    index = ((free == best) | free.isnan()).logical_and_(~taken).int().argmax()
    exhausted = taken.all()
    taken.index_fill_(0, index, True)
    return torch.where(exhausted, -1, index), best
