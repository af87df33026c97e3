"""One k-means++ pick of BADGE: a single pass over the pool."""

import torch
from torch import Tensor

from lapal_ext.ops.declare import define
from lapal_ext.ops.row_products import dot_rows

_SAME_POINT = 16.0  # eps of the norms: a smaller distance is rounding


def _check(threshold: Tensor) -> None:
    # Only on the CPU: on a GPU the check would synchronise.
    if threshold.device.type == "cpu" and not 0.0 <= float(threshold) < 1.0:
        raise ValueError(f"threshold must lie in [0, 1), got {float(threshold):g}")


@define(
    shapes={
        "u": "[D]",
        "pool": "storage [N, D]",
        "offset": "[]",
        "gradient": "[N, C]",
        "g": "[C]",
        "squared_norm": "[N]",
        "centre_norm": "[]",
        "threshold": "[]",
        "distance": "[N]",
    },
    returns=("int64 []",),
    mutates=("distance",),
    check=_check,
)
def badge_step_(
    pool: Tensor,  # [N, D]
    u: Tensor,  # [D]
    offset: Tensor,  # []
    gradient: Tensor,  # [N, C]
    g: Tensor,  # [C]
    squared_norm: Tensor,  # [N]
    centre_norm: Tensor,  # []
    threshold: Tensor,  # []
    distance: Tensor,  # [N]
) -> Tensor:  # []
    """Update the distance of every row with a new centre, then draw the next one in proportion to distance.

    The gradient embedding g (x) phi of Ash et al. (arXiv 1906.03671) is never formed, since
        |g (x) phi - g* (x) phi*|^2 = |g|^2 |phi|^2 + |g*|^2 |phi*|^2 - 2 (g.g*)(phi.phi*).

    Args:
        pool: raw features, [N, D], of any storage dtype.
        u: phi* of the centre, as weights of raw features, [D].
        offset: the constant that bias and centring add to phi.phi*, 0-d.
        gradient: e_1 - p of every row, [N, C].
        g: gradient of the centre, [C].
        squared_norm: |g|^2 |phi|^2 of every row, [N].
        centre_norm: |g*|^2 |phi*|^2 of the centre, 0-d.
        threshold: uniform draw in [0, 1), 0-d.
        distance: squared distance to the nearest centre, [N], inf before the first; changed in place.

    Returns:
        Index, int64 0-d: the first row at which the running sum of distances exceeds threshold times its total; -1 if
        every row coincides with a centre. A row that equals a centre up to rounding has distance zero and is never
        drawn. O(N (D + C)).
    """
    product = dot_rows(gradient, g) * (dot_rows(pool, u) + offset)
    norms = squared_norm + centre_norm
    fresh = norms - 2.0 * product
    fresh = fresh.masked_fill(fresh <= _SAME_POINT * torch.finfo(u.dtype).eps * norms, 0.0)
    torch.minimum(distance, fresh, out=distance)
    if distance.numel() == 0:
        return distance.new_full((), -1, dtype=torch.int64)
    running = distance.double().cumsum(0)
    index = (running > threshold * running[-1]).int().argmax()
    return torch.where(running[-1] > 0, index, -1)
