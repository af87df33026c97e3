"""Absorbing labels into a mean and a covariance: the exact blocked update, as a function of tensors."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import PSD_SLACK, RESOLUTION
from lapal_ext.rules import UpdateRule
from lapal_ext.validation.tensors import check_overflow, is_finite

_BLOCK = 256  # observations per recursion: its b^3 is less than the two products around it, b D^2 each


def absorb(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
    rule: UpdateRule,
    name: str = "features",
    rows: Tensor | None = None,  # [n]
) -> tuple[Tensor, Tensor, Tensor]:
    """Absorb n labels in order; the inputs are not modified.

    Args:
        mean: [C, D].
        covariance: [D, D].
        features: of the observations, standardised, [n, D].
        targets: their labels, [n].
        rule: of the update.
        name: the argument that holds the observations, for errors.
        rows: their row numbers in that argument, [n]; by default from 0 on.

    Returns:
        The new mean [C, D] and covariance [D, D], and the curvature weight [n] of each observation, which is what the
        precision gains along it.

    Raises:
        ValueError: the features or gamma are so large that the result overflows.
        NotPSDError: the covariance is not, or no longer, positive semi-definite.
    """
    gained = []
    for start in range(0, max(1, features.shape[0]), _BLOCK):  # without rows, one empty block checks the posterior
        x, y = features[start : start + _BLOCK], targets[start : start + _BLOCK]
        old_mean, old_covariance = mean, covariance
        mean, covariance, weights, well_conditioned = ops.absorb_labels.unchecked(old_mean, old_covariance, x, y, *rule)
        if not well_conditioned:
            squares = x.square().sum(1)
            stop = start + x.shape[0]
            numbers = torch.arange(start, stop, device=x.device) if rows is None else rows[start:stop]
            _check_rows(old_mean, old_covariance, x, squares, y, rule, name, numbers)
            check_overflow(name, mean, covariance, weights * squares)
        gained.append(weights)
    return mean, covariance, gained[0] if len(gained) == 1 else torch.cat(gained)


def coefficients(
    gram: Tensor,  # [M, b, b]
    logits: Tensor,  # [M, b, C]
    targets: Tensor,  # [M, b]
    rule: UpdateRule,
    *,
    name: str,
    rows: Tensor,  # [M, b]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Call ``ops.update_coefficients``; raise where it returns NaN, or zero for an infinite variance.

    Args:
        gram: [M, b, b], like the next two as for the op.
        logits: [M, b, C].
        targets: [M, b].
        rule: of the update.
        name: the argument that holds the observations, for errors.
        rows: their row numbers in that argument.

    Raises:
        ValueError: the logits, a variance or the steps overflow.
        NotPSDError: the covariance is not, or no longer, positive semi-definite, or an observation shrinks it so much
            that the result is mostly rounding.
    """
    h, triangle, beta, weights = ops.update_coefficients.unchecked(gram, logits, targets, *rule)
    if is_finite(gram, logits, h, beta):
        check_resolution(weights, beta, name, rows)
        return h, triangle, beta, weights
    check_overflow(name, gram, logits)
    if not is_finite(beta):
        raise _not_psd(int(rows[beta.isfinite().logical_not()][0]), name)
    raise steps_overflow(h, rule.gamma)


def check_resolution(
    weights: Tensor,  # s
    beta: Tensor,  # s / (1 + s v)
    name: str,
    rows: Tensor,  # of the same shape
) -> None:
    """Raise NotPSDError if an observation divides the variance along itself by more than its dtype can resolve."""
    lost = weights * (torch.finfo(weights.dtype).eps / RESOLUTION) > beta
    if bool(lost.any()):
        raise _unresolved_variance(int(rows[lost][0]), name, weights.dtype)


def check_variance(
    variance: Tensor,  # [n]
    x: Tensor,  # [n, D], standardised
    covariance: Tensor,  # [D, D]
    name: str,
    rows: int | Tensor = 0,  # or [n]
) -> None:
    """Raise a typed error unless the variances phi^T Sigma phi are finite, not negative, and accurate.

    ``rows`` are the numbers of the rows in the argument ``name``, or that of the first if they follow one another.

    Every entry of Sigma is rounded, which changes the variance by about eps sqrt(sum_ij (phi_i Sigma_ij phi_j)^2), at
    most eps |phi|^2 max_i Sigma_ii. This is far more than the variance itself if the features are large and Sigma is
    large in other directions.

    Raises:
        ValueError: a variance is not finite.
        NotPSDError: a variance is negative, or most of it is rounding.
    """
    check_overflow(name, variance)
    if not variance.numel():
        return
    squares = torch.linalg.vector_norm(x, dim=1).square()  # without a matrix of squares
    if float(variance.amin()) >= 0.0 and _rounding_is_small(squares, covariance):
        return
    eps = torch.finfo(variance.dtype).eps
    allowed = (RESOLUTION / eps) * (1.0 + variance.clamp(min=0.0))
    suspects = (squares * covariance.diagonal().abs().max() > allowed) | (variance < 0.0)
    suspects = suspects.nonzero()[:, 0]
    numbers = suspects + rows if isinstance(rows, int) else rows[suspects]
    negative = variance[suspects] < -PSD_SLACK * eps * squares[suspects] * covariance.norm()
    if bool(negative.any()):
        raise _not_psd(int(numbers[negative][0]), name)
    lost = _rounding(x[suspects], covariance) > allowed[suspects]
    if bool(lost.any()):
        raise _unresolved_variance(int(numbers[lost][0]), name, variance.dtype)


def _rounding_is_small(
    squares: Tensor,  # [n], |phi|^2
    covariance: Tensor,  # [D, D]
) -> bool:
    """Whether a cheap upper bound shows that rounding is small, which is nearly always so."""
    return float(squares.amax()) * float(covariance.diagonal().amax()) <= RESOLUTION / torch.finfo(squares.dtype).eps


def _rounding(
    x: Tensor,  # [n, D], standardised
    covariance: Tensor,  # [D, D]
) -> Tensor:  # [n]
    """sqrt(sum_ij (phi_i Sigma_ij phi_j)^2): the rounding of a variance, in units of eps."""
    squares = x.double().square()
    return ((squares @ covariance.double().square()) * squares).sum(1).sqrt().to(x.dtype)


def _unresolved_variance(row: int, name: str, dtype: torch.dtype) -> NotPSDError:
    return NotPSDError(
        f"covariance cannot hold in {dtype} the variance along row {row} of {name}: use standardised features, a "
        "larger prior_precision or float64"
    )


def _not_psd(row: int, name: str) -> NotPSDError:
    return NotPSDError(
        f"covariance is not positive semi-definite along row {row} of {name}: refresh() the posterior, or use a "
        "larger prior_precision or standardised features"
    )


def steps_overflow(steps: Tensor, gamma: float) -> ValueError:
    """The error for finite features that give steps that are not finite."""
    return ValueError(f"gamma must leave the steps finite in {steps.dtype}, got {gamma:g}")


def _check_rows(
    mean: Tensor,
    covariance: Tensor,
    x: Tensor,
    squares: Tensor,
    targets: Tensor,
    rule: UpdateRule,
    name: str,
    rows: Tensor,
) -> None:
    """Raise if a row of ``x`` cannot be absorbed; ``name`` and ``rows`` are as for ``absorb``."""
    columns = ops.inner_products.unchecked(x, covariance.mT)
    gram, logits = ops.inner_products.unchecked(columns, x), ops.inner_products.unchecked(x, mean)
    _, triangle, beta, _ = (
        result[0] for result in coefficients(gram[None], logits[None], targets[None], rule, name=name, rows=rows[None])
    )
    if x.shape[0] > 0 and not _rounding_is_small(squares, covariance):
        # The variance of row t when it is absorbed: T_tu = beta_u c_tu for the earlier rows u.
        before = (triangle.tril(-1).square() / beta.clamp(min=torch.finfo(beta.dtype).tiny)).sum(1)
        check_variance(gram.diagonal() - before, x, covariance, name, rows)
