"""The MAP weights of a softmax regression, under a zero-mean or another Gaussian prior."""

import math

import torch
from torch import Tensor

from lapal_ext.errors import NotPSDError
from lapal_ext.posterior.softmax_fit import quasi_newton, trust_region
from lapal_ext.posterior.softmax_fit.objective import Fit, Objective

TOLERANCE = 1e-4  # the largest change of a probability that is still to come when a fit ends
_RESOLVED = {torch.float32: 1e-5, torch.float64: 1e-10}  # changes of probabilities in L-BFGS


@torch.no_grad()
def map_weights(
    features: Tensor,  # [N, D]
    targets: Tensor,  # [N] int64
    num_classes: int,
    prior_precision: float,
    *,
    trust: Tensor | None = None,  # [N]
    start: Tensor | None = None,  # [C, D]
    tolerance: float = 0.0,
) -> Fit:
    """Minimise sum_n t_n cross_entropy(W phi_n, y_n) + prior_precision / 2 |W|^2.

    All columns have the same penalty, including a constant feature (the bias).

    Args:
        features: phi, [N, D].
        targets: labels in [0, num_classes), [N].
        num_classes: C.
        prior_precision: lambda > 0.
        trust: t >= 0 of every row, [N]; None is one.
        start: weights to begin at, [C, D]; None is zero.
        tolerance: the largest change of any probability that may still be to come; 0 goes on to the limit of float64.

    Raises:
        ValueError: the objective overflows.
    """
    names = "features or prior_precision" if trust is None else "features, weights or prior_precision"
    trust = features.new_ones(len(features)) if trust is None else trust.to(features.dtype)
    if start is not None:
        start = start - start.mean(0)  # which changes no probability, and is zero at the minimum
    fit = _minimise(Objective(features, targets, trust, None, num_classes, prior_precision), start, tolerance)
    if not bool(fit.weight.isfinite().all()) or (not fit.converged and not math.isfinite(fit.gradient)):
        raise ValueError(f"{names} must be smaller, got values with which the fit overflows")
    return fit


@torch.no_grad()
def map_weights_from(
    mean: Tensor,  # [C, D]
    factor: Tensor,  # [D, D] float64
    features: Tensor,  # [N, D]
    targets: Tensor,  # [N] int64
    gamma: Tensor,  # [N]
) -> Fit:
    """Minimise sum_n gamma_n cross_entropy(W phi_n, y_n) + 1/2 sum_k (W - M)_k Sigma^-1 (W - M)_k.

    This is the mode of all labels together, in any order, with the current posterior as the prior. With Sigma = R R^T
    and W = M + V R^T it is a fit of V to the features X R, at a prior precision of one, with X M^T added to the logits.
    O(N D^2) and the products of the fit, 2 N C min(N, D) each. The fit is small, so it goes on as far as L-BFGS gets in
    the dtype of the features.

    Args:
        mean: M, [C, D].
        factor: R, [D, D], by ``cholesky_factor``.
        features: X, [N, D].
        targets: labels in [0, C), [N].
        gamma: trust in every label, >= 0, [N].

    Raises:
        ValueError: the objective overflows.
    """
    dtype, old, x = features.dtype, mean.double(), features.double()
    whitened, offset = (x @ factor).to(dtype), (old @ x.T).to(dtype)
    objective = Objective(whitened, targets, gamma.to(dtype), offset, len(mean), 1.0)
    fit = _minimise(objective, None, _RESOLVED[dtype])
    weight = torch.addmm(old, fit.weight, factor.T)
    if not bool(weight.isfinite().all()) or (not fit.converged and not math.isfinite(fit.gradient)):
        raise ValueError("features or gamma must be smaller, got values with which the update overflows")
    return fit._replace(weight=weight)


def cholesky_factor(
    covariance: Tensor,  # [D, D]
) -> Tensor:  # [D, D] float64
    """R with Sigma = R R^T, or raise NotPSDError. O(D^3)."""
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance.double())
    if int(info) != 0:
        raise NotPSDError(
            "covariance is not positive definite: refresh() the posterior, or use a larger prior_precision or "
            "standardised features"
        )
    return factor


def _minimise(objective: Objective, start: Tensor | None, tolerance: float) -> Fit:
    """Minimise in the span of the rows, by L-BFGS and then, if that does not suffice, by Newton's method in float64."""
    n_rows, n_features = objective.features.shape
    basis = None
    if n_rows < n_features:  # W only moves in the span of the rows: X = L Q^T is a fit with N columns
        basis, triangle = torch.linalg.qr(objective.features.T)
        objective = objective._replace(features=triangle.T.contiguous())
        start = None if start is None else start.to(basis.dtype) @ basis
    resolved = _RESOLVED[objective.features.dtype]
    ended = quasi_newton.minimise(objective, start, max(tolerance, resolved))
    if ended.change <= tolerance:
        fit = Fit(ended.weight.double(), True, math.nan)
    else:
        fit = trust_region.minimise(objective, ended.weight if ended.weight.isfinite().all() else start, tolerance)
    weight = fit.weight - fit.weight.mean(0)  # rounding may add to all classes alike, which a tiny prior does not undo
    return fit._replace(weight=weight if basis is None else weight @ basis.T.double())
