"""Products of the rows of a pool with one vector, and distances to one point: equal bits for equal rows, anywhere."""

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


def square_distances(
    pool: Tensor,  # [N, D], of any storage dtype
    point: Tensor,  # [D]
    scale: Tensor,  # [D]
) -> Tensor:  # [N]
    """Squared distances with every feature scaled, in the dtype of ``point``; zero for a copy of the point."""
    result = point.new_empty(pool.shape[0])
    for start in range(0, pool.shape[0], _TILE_ROWS):
        rows = slice(start, start + _TILE_ROWS)
        gaps = ((pool[rows].to(point.dtype) - point) * scale).contiguous()
        torch.sum(gaps.square_(), dim=1, out=result[rows])
    return result
