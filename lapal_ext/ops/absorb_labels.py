"""A batch of labels absorbed into a mean and a covariance: a whole update in one call."""

import torch
from torch import Tensor

from lapal_ext.likelihood import CURVATURES, RESOLUTION, STEPS
from lapal_ext.ops.declare import define
from lapal_ext.ops.inner_products import inner_products
from lapal_ext.ops.rank_n_update import rank_n_update
from lapal_ext.ops.rank_one_update import rank_one_update
from lapal_ext.ops.update_coefficients import update_coefficients


@define(
    shapes={"mean": "[C, D]", "covariance": "[D, D]", "features": "[b, D]", "targets": "int64 [b]"},
    returns=("[C, D]", "[D, D]", "[b]", "bool []"),
    choices={"step": STEPS, "curvature": CURVATURES},
    nonnegative=("gamma",),
    indices={"targets": "C"},
)
def absorb_labels(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [b, D]
    targets: Tensor,  # [b]
    gamma: float,
    step: str,
    curvature: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two matrix products around the recursion of ``update_coefficients``, whose docstring has the formulas.

    One op replaces five: for a few labels, a call through Python takes longer than its arithmetic.

    Args:
        mean: W, [C, D].
        covariance: Sigma, symmetric, [D, D].
        features: X, the rows in the order in which they are absorbed, [b, D].
        targets: their labels in [0, C), int64 [b].
        gamma: trust in the labels, >= 0; 1 is Bayes.
        step: ``line_search`` or ``newton``, see ``likelihood.step_length``.
        curvature: ``categorical`` or ``gaussian``.

    Returns:
        The new mean [C, D]; the new covariance [D, D], symmetric to the bit; the curvature weight s' of each row [b],
        which is what the precision gains along it; and well_conditioned, a bool []. The last one is True if the gram
        matrix X Sigma X^T, the logits X W^T, beta, the new mean and covariance, and each s' |x|^2 are finite; no row
        divides the variance along itself by more than ``RESOLUTION`` / eps (s' <= ``RESOLUTION`` / eps beta); and |x|^2
        max_i Sigma_ii is not larger than that either. So it is False after an overflow, where the covariance is not, or
        no longer, positive semi-definite, and where rounding is large. O(b D (D + C) + b^2 (b + C + D)).
    """
    columns = inner_products(features, covariance.mT)  # symmetric; the kernel reads the transpose fastest
    gram, logits = inner_products(columns, features), inner_products(features, mean)
    h, triangle, beta, weights = (
        result[0] for result in update_coefficients(gram[None], logits[None], targets[None], gamma, step, curvature)
    )
    new_mean = torch.addmm(mean, h.T, columns)
    if features.shape[0] == 1:
        new_covariance = rank_one_update(covariance[None], features, weights)[0][0]
    else:
        new_covariance = rank_n_update(covariance, columns, -beta, triangle)
    squares, limit = features.square().sum(1), RESOLUTION / torch.finfo(mean.dtype).eps
    results = gram, logits, beta, new_mean, new_covariance, weights * squares
    conditions = [result.isfinite() for result in results]
    conditions += [weights <= limit * beta, torch.outer(squares, covariance.diagonal()) <= limit]
    return new_mean, new_covariance, weights, torch.stack([condition.all() for condition in conditions]).all()
