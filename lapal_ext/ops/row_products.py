"""Products of a pool's rows with one vector, the same to the bit for equal rows wherever they stand."""

import torch
from torch import Tensor

_TILE_ROWS = 4096


def dot_rows(
    pool: Tensor,  # [N, D], of any storage dtype
    vector: Tensor,  # [D]
) -> Tensor:  # [N]
    """Row products in the dtype of ``vector``.

    A matrix-vector product takes the sum of a row in an order that depends on where the row stands, so that duplicates
    would not tie. The sum of a contiguous row has one order.
    """
    result = vector.new_empty(pool.shape[0])
    for start in range(0, pool.shape[0], _TILE_ROWS):
        rows = slice(start, start + _TILE_ROWS)
        torch.sum((pool[rows].to(vector.dtype) * vector).contiguous(), dim=1, out=result[rows])
    return result
