"""Products of the rows of a pool with one vector, equal to the bit for equal rows at any position."""

import torch
from torch import Tensor

_TILE_ROWS = 4096


def dot_rows(
    pool: Tensor,  # [N, D], of any storage dtype
    vector: Tensor,  # [D]
) -> Tensor:  # [N]
    """Row products in the dtype of ``vector``.

    In a matrix-vector product the order of summation depends on the position of the row, so that duplicates would not
    tie. The sum of a contiguous row has one order.
    """
    result = vector.new_empty(pool.shape[0])
    for start in range(0, pool.shape[0], _TILE_ROWS):
        rows = slice(start, start + _TILE_ROWS)
        torch.sum((pool[rows].to(vector.dtype) * vector).contiguous(), dim=1, out=result[rows])
    return result
