"""The standardised rows that have labels, and squared Euclidean distances by a matrix product."""

from torch import Tensor

from lapal_ext.acquisition.spec import Setting
from lapal_ext.validation.tensors import check_overflow

TILE = 1 << 21  # distances held at a time, 16 MiB


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
