"""The row with the largest utility, as every selection step picks it."""

import torch
from torch import Tensor


def pick_best(
    utilities: Tensor,  # [N]
    taken: Tensor,  # [N] bool, the pick is set in place
) -> tuple[Tensor, Tensor]:
    """Take the free row with the largest utility. Ties go to the lowest index, and a NaN counts as the largest.

    Returns:
        Its index, int64 0-d, and its utility, 0-d; -1 and -inf if no row is free.
    """
    if utilities.numel() == 0:
        return taken.new_full((), -1, dtype=torch.int64), utilities.new_full((), -torch.inf)
    free = utilities.masked_fill(taken, -torch.inf)
    best = free.amax()
    # Masked again: if every free utility is -inf, the rows that are taken are equal to them.
    index = ((free == best) | free.isnan()).logical_and_(~taken).int().argmax()
    exhausted = taken.all()
    taken.index_fill_(0, index, True)
    return torch.where(exhausted, -1, index), best
