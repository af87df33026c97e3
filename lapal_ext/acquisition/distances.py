"""Euclidean distances between the rows of a pool and points, in float64 and in tiles.

The squared differences of a pair are summed in one order, so that copies of a row tie to the bit and have distance
zero. Where there are too many pairs for that, ``squared_distances`` uses a matrix product.
"""

import torch
from torch import Tensor

from lapal_ext.acquisition.spec import Setting
from lapal_ext.pool.pool import Pool
from lapal_ext.validation.tensors import check_overflow

TILE = 1 << 21  # distances held at a time, 16 MiB


def nearest_distance(
    pool: Pool,
    points: Tensor,  # [L, D], standardised, L >= 1
) -> Tensor:  # [N] float64
    """Distance of every row to its nearest point. O(N L D)."""
    result = torch.empty(len(pool), dtype=torch.float64, device=points.device)
    for rows, tile in pool.standardized_tiles():
        nearest = [_distances(tile, block).amin(1) for block in points.split(max(1, TILE // max(1, len(tile))))]
        result[rows] = torch.stack(nearest).amin(0)
    return result


def _distances(
    rows: Tensor,  # [n, D]
    points: Tensor,  # [m, D]
) -> Tensor:  # [n, m] float64
    return torch.cdist(rows.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist")


def squared_distances(
    rows: Tensor,  # [n, D] float64
    points: Tensor,  # [m, D] float64
) -> Tensor:  # [n, m] float64
    """|x|^2 + |y|^2 - 2 x.y: seven times as fast, with an error of a few eps of the squared norms."""
    squares = rows.square().sum(1)[:, None] + points.square().sum(1)
    return squares.addmm_(rows, points.T, alpha=-2.0).clamp_(min=0.0)


def labelled_features(
    setting: Setting,
) -> Tensor:  # [L, D]
    """The standardised rows that have labels; none if they were not given."""
    mean = setting.posterior.mean
    if setting.labelled is None:
        return mean.new_empty(0, mean.shape[1])
    points = setting.posterior.standardization.standardized(setting.labelled)
    check_overflow("labelled", 4.0 * points.square().sum(1))
    return points
