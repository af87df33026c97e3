"""Absorbing labels into a mean and a covariance: the exact blocked update, as a function of tensors."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext._checks import check_overflow, is_finite
from lapal_ext.errors import NotPSDError

_BLOCK = 256  # observations per recursion: its b^3 stays below the two b D^2 products around it


def absorb(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
    step: str,
    gamma: float,
    curvature: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Absorb n labels in order; the inputs stay as they are.

    Returns:
        The new mean [C, D] and covariance [D, D], and the curvature weight [n] of each observation, which is what the
        precision gains along it.

    Raises:
        ValueError: the features or gamma are so large that the result overflows.
        NotPSDError: the covariance is not, or no longer, positive semi-definite.
    """
    gained = []
    for start in range(0, max(1, features.shape[0]), _BLOCK):  # of no rows, one empty block looks at the posterior
        x, y = features[start : start + _BLOCK], targets[start : start + _BLOCK]
        old_mean, old_covariance = mean, covariance
        mean, covariance, weights, finite = ops.absorb_labels(old_mean, old_covariance, x, y, gamma, step, curvature)
        if not finite:
            _check_rows(old_mean, old_covariance, x, y, step, gamma, curvature, start)
            check_overflow("features", mean, covariance, weights * x.square().sum(1))
        gained.append(weights)
    return mean, covariance, gained[0] if len(gained) == 1 else torch.cat(gained)


def coefficients(
    gram: Tensor,  # [M, b, b]
    logits: Tensor,  # [M, b, C]
    targets: Tensor,  # [M, b]
    gamma: float,
    step: str,
    curvature: str,
    *,
    name: str,
    rows: Tensor,  # [M, b]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``ops.update_coefficients`` with an error where it would return NaN, or zero for an infinite variance.

    Args:
        gram: [M, b, b], as for the op, and so on.
        logits: [M, b, C].
        targets: [M, b].
        gamma: trust in the labels.
        step: ``line_search`` or ``newton``.
        curvature: ``categorical`` or ``gaussian``.
        name: the argument that the observations come from.
        rows: where in it they stand.

    Raises:
        ValueError: the logits, a variance or the steps overflow.
        NotPSDError: the covariance is not, or no longer, positive semi-definite.
    """
    h, triangle, beta, weights = ops.update_coefficients(gram, logits, targets, gamma, step, curvature)
    if is_finite(gram, logits, h, beta):
        return h, triangle, beta, weights
    check_overflow(name, gram, logits)
    if not is_finite(beta):
        row = int(rows[beta.isfinite().logical_not()][0])
        raise NotPSDError(
            f"covariance is not positive semi-definite along row {row} of {name}: refresh() the posterior, or use a "
            "larger prior_precision or standardised features"
        )
    raise steps_overflow(h, gamma)


def steps_overflow(steps: Tensor, gamma: float) -> ValueError:
    """The error where finite features give steps that are not finite."""
    return ValueError(f"gamma must leave the steps finite in {steps.dtype}, got {gamma:g}")


def _check_rows(
    mean: Tensor,
    covariance: Tensor,
    x: Tensor,
    targets: Tensor,
    step: str,
    gamma: float,
    curvature: str,
    first_row: int,
) -> None:
    """Raise where one of ``x``, from row ``first_row`` of the features on, cannot be absorbed."""
    columns = ops.inner_products(x, covariance.mT)
    gram, logits = ops.inner_products(columns, x), ops.inner_products(x, mean)
    rows = torch.arange(first_row, first_row + x.shape[0], device=x.device)
    coefficients(gram[None], logits[None], targets[None], gamma, step, curvature, name="features", rows=rows[None])
