"""The function that a fit minimises, and where a fit ended."""

from typing import NamedTuple

import torch
from torch import Tensor

_NEAR = 2e-4  # nats of all rows together; where features are well scaled, fits end below it by themselves


class Objective(NamedTuple):
    """f(W) = sum_n t_n cross_entropy(o_n + W x_n, y_n) + prior_precision / 2 |W|^2.

    The rows of its minimum sum to zero over the classes: a vector added to all rows changes no probability, and the
    penalty is least for that sum.
    """

    features: Tensor  # X, [N, D], float32 or float64
    targets: Tensor  # y, [N] int64
    trust: Tensor  # t >= 0, [N], in the dtype of the features
    offset: Tensor | None  # o, class-major, [C, N] in the dtype of the features; None is zero
    num_classes: int
    prior_precision: float

    def is_near(
        self,
        gradient: Tensor,  # [C, D]
    ) -> bool:
        """Whether the minimum is surely near a point with this gradient.

        The objective is strongly convex, so it is at most |gradient|^2 / (2 prior_precision) above its minimum. Without
        this bound, small steps along some directions could hide that others are far from done.
        """
        return float(gradient.square().sum()) <= 2.0 * self.prior_precision * _NEAR

    def zero(self, dtype: torch.dtype) -> Tensor:  # [C, D]
        """Weights of zero."""
        return self.features.new_zeros(self.num_classes, self.features.shape[1], dtype=dtype)


class Fit(NamedTuple):
    """The weights at which a fit ended."""

    weight: Tensor  # [C, D] float64
    converged: bool
    gradient: float  # its largest entry, in absolute value; NaN if it was not computed in float64

    def warning_text(self, what: str) -> str:
        """The text of a warning that ``what`` has not converged, or an empty string."""
        return "" if self.converged else f"{what} stopped with a gradient of {self.gradient:.1e}"
