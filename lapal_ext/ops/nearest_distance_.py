"""One pick of k-centre greedy: a single pass over the pool."""

import torch
from torch import Tensor

from lapal_ext.ops.best_row import pick_best
from lapal_ext.ops.declare import define
from lapal_ext.ops.row_products import square_distances


@define(
    shapes={
        "centres": "[L, D]",
        "pool": "storage [N, D]",
        "scale": "[D]",
        "nearest": "[N]",
        "taken": "bool [N]",
    },
    returns=("int64 []", "[]"),
    mutates=("nearest", "taken"),
)
def nearest_distance_(
    pool: Tensor,  # [N, D]
    centres: Tensor,  # [L, D]
    scale: Tensor,  # [D]
    nearest: Tensor,  # [N]
    taken: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:
    """Update the distance of every row with new centres, then take the row that is farthest from its nearest centre.

        nearest_n = min(nearest_n, min_l sum_j ((x_nj - c_lj) scale_j)^2)

    Args:
        pool: raw features x, [N, D], of any storage dtype.
        centres: raw features c of the new centres, [L, D].
        scale: scale of every feature; the centre of a standardisation and a bias cancel in a difference.
        nearest: squared distance to the nearest centre, [N], inf before the first; changed in place.
        taken: rows that may not be picked, bool [N]; the pick is set in place.

    Returns:
        Index, int64 0-d, -1 if every row was taken, and its squared distance, 0-d. A copy of a centre has distance
        zero, to the bit, and equal rows tie. O(N L D).

    Source: Gonzalez (1985), "Clustering to minimize the maximum intercluster distance", the greedy algorithm.
    """
    for centre in centres.unbind():
        torch.minimum(nearest, square_distances(pool, centre, scale), out=nearest)
    return pick_best(nearest, taken)
