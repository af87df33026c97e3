"""The MAP weights of a softmax regression by a trust-region Newton method, under a zero-mean or another Gaussian prior.

The objective and its gradient are evaluated in float64, about twenty times. The step between two evaluations comes from
conjugate gradients, and their products with the Hessian are most of the work. A step need not be exact, so the products
run in float32, and in float64 only when float32 makes no more progress.

Source: Steihaug, "The conjugate gradient method and trust regions in large scale optimization", SIAM J. Numer. Anal.
20 (1983); for logistic regression Lin, Weng, Keerthi, "Trust region Newton method for large-scale logistic
regression", JMLR 9 (2008).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.errors import NotPSDError
from lapal_ext.tiles import TILE_ROWS, row_tiles

_GRADIENT_TOLERANCE = 1e-8  # a fit ends when the largest entry of the gradient of the summed objective is below this
_GRADIENT_WARNING = 1e-5  # a fit warns if it ends with a larger entry, because float64 makes no more progress
_MAX_STEPS = 500
_MAX_PRODUCTS = 500, 20_000  # with the Hessian: in one step, and in a whole fit
_PATIENCE = 60  # steps in float32 before float64; 10 to 40 are enough for features that float32 can resolve
_FORCING = 0.5, 0.03  # residual of a step, relative to the gradient: far from the minimum, and near it
_WRONG, _HOLDS = 0.25, 0.75  # actual over predicted decrease: below, the radius shrinks; above, it grows
_SHORTER, _LONGER = 0.3, 2.0  # the new radius, in lengths of the last step
_PLAIN = 1e12  # sizes of features for which float32 needs no scaling of the rows themselves
_RESOLVED = 1e-10  # a decrease relative to the objective; a smaller one is rounding


class Fit(NamedTuple):
    """The weights at which a fit ended, and the gradient there."""

    weight: Tensor  # [C, D] float64
    gradient: float  # its largest entry, in absolute value

    def warning_text(self, what: str) -> str:
        """The text of a warning that ``what`` has not converged, or an empty string."""
        if self.gradient <= _GRADIENT_WARNING:
            return ""
        return f"{what} stopped with a gradient of {self.gradient:.1e}"


class _Point(NamedTuple):
    weight: Tensor  # [C, D] float64
    value: float
    gradient: Tensor  # [C, D] float64
    probabilities: Tensor  # [n, C] float64

    @property
    def slope(self) -> float:
        return float(self.gradient.norm())

    @property
    def worst(self) -> float:
        return float(self.gradient.abs().max())

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.slope)


class _Step(NamedTuple):
    direction: Tensor  # [C, D] float64
    decrease: float  # of the objective, as the quadratic model predicts it
    products: int  # that it took


def map_weights(
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n] int64
    num_classes: int,
    prior_precision: float,
) -> Fit:
    """Minimise sum_n cross_entropy(W phi_n, y_n) + prior_precision / 2 |W|^2, to convergence.

    All columns have the same penalty, including a constant feature (the bias).

    Raises:
        ValueError: the objective overflows.
    """
    offset = torch.zeros(features.shape[0], num_classes, dtype=torch.float64, device=features.device)
    point = _minimise(_Objective(features, targets, offset, prior_precision))
    if not point.is_finite:
        raise ValueError("features or prior_precision must be smaller, got values with which the fit overflows")
    return Fit(point.weight, point.worst)


def map_weights_from(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n] int64
    gamma: float,
) -> Fit:
    """Minimise gamma sum_n cross_entropy(W phi_n, y_n) + 1/2 sum_k (W - M)_k Sigma^-1 (W - M)_k, to convergence.

    This is the mode of all labels together, in any order, with the current posterior as the prior. With Sigma = R R^T
    and W = M + V R^T it is a fit of V to the features X R, at a prior precision of 1 / gamma, with X M^T added to the
    logits. O(D^3) and the products of the fit, 2 n C min(n, D) each.

    Args:
        mean: M, [C, D].
        covariance: Sigma, [D, D].
        features: X, [n, D].
        targets: labels in [0, C), [n].
        gamma: trust in the labels, > 0.

    Raises:
        NotPSDError: the covariance is not positive definite.
        ValueError: the objective overflows.
    """
    factor, info = torch.linalg.cholesky_ex(covariance.double())
    if int(info) != 0:
        raise NotPSDError(
            "covariance is not positive definite: refresh() the posterior, or use a larger prior_precision or "
            "standardised features"
        )
    old, x = mean.double(), features.double()
    # X R = L Q^T: V only moves in the span of the rows, so that n < D rows need a fit with n columns.
    basis, triangle = torch.linalg.qr((x @ factor).T)
    point = _minimise(_Objective(triangle.T, targets, x @ old.T, 1.0 / gamma))
    if not point.is_finite:
        raise ValueError("features or gamma must be smaller, got values with which the update overflows")
    return Fit(torch.addmm(old, point.weight, (factor @ basis).T), point.worst)


def _tiles_in_float64(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Tiles of rows [n, D] in float64. A copy of all rows would take twice the memory of features in float32.

    Every tile overwrites the previous one: new buffers, with results between them, would fragment as much memory.
    """
    buffer = features.new_empty(min(TILE_ROWS, len(features)), features.shape[1], dtype=torch.float64)
    for rows in row_tiles(len(features)):
        yield rows, buffer[: rows.stop - rows.start].copy_(features[rows])


class _Objective:
    """sum_n cross_entropy(offset_n + W phi_n, y_n) + prior_precision / 2 |W|^2."""

    def __init__(
        self,
        features: Tensor,  # [n, D]
        targets: Tensor,  # [n]
        offset: Tensor,  # [n, C] float64
        prior_precision: float,
    ) -> None:
        self._x = features
        self._offset = offset
        self._targets = targets
        self._rows = torch.arange(len(targets), device=features.device)
        self._prior_precision = prior_precision

    def start(self) -> _Point:
        return self.at(self._offset.new_zeros(self._offset.shape[1], self._x.shape[1]))

    def at(self, weight: Tensor) -> _Point:
        logits = torch.empty_like(self._offset)
        for rows, x in _tiles_in_float64(self._x):
            torch.addmm(self._offset[rows], x, weight.T, out=logits[rows])
        log_p = logits.log_softmax(1)
        probabilities = log_p.exp()
        gap = probabilities.clone()
        gap[self._rows, self._targets] -= 1.0
        gradient, kept = weight.clone(), self._prior_precision
        for rows, x in _tiles_in_float64(self._x):
            gradient, kept = gradient.addmm_(gap[rows].T, x, beta=kept), 1.0
        if len(self._x) == 0:
            gradient *= kept
        value = 0.5 * self._prior_precision * weight.square().sum() - log_p[self._rows, self._targets].sum()
        return _Point(weight, float(value), gradient, probabilities)

    def curvature(self, dtype: torch.dtype) -> "_Curvature":
        return _Curvature(self._x, self._prior_precision, dtype)


class _Curvature:
    """The Hessian over size^2: V -> (p * (Z - sum_k p_k Z_k)) X + prior_precision V, with Z = V X^T, classes in rows.

    ``size`` combines the largest feature and the prior, so that nothing overflows in float32.
    """

    def __init__(self, x: Tensor, prior_precision: float, dtype: torch.dtype) -> None:
        largest = max(map(abs, map(float, x.aminmax()))) if x.numel() else 0.0
        self.size = math.hypot(largest, math.sqrt(prior_precision)) if math.isfinite(largest) else 1.0
        self.dtype = dtype
        self._prior_precision = prior_precision / self.size / self.size
        # Many rows are not copied: the small matrices are divided by ``size`` in their place, where that cannot vanish.
        self._unit = 1.0
        if len(x) > TILE_ROWS and dtype == x.dtype and 1.0 / _PLAIN < self.size < _PLAIN:
            self._rows, self._unit = x, self.size
        else:
            self._rows = x.new_empty(x.shape, dtype=dtype)  # [n, D]
            for rows, tile in _tiles_in_float64(x):
                torch.div(tile, self.size, out=self._rows[rows])
        self._columns = self._rows.T.contiguous() if len(x) <= TILE_ROWS else None  # [D, n]

    def times(
        self,
        probabilities: Tensor,  # [C, n]
        direction: Tensor,  # [C, D]
    ) -> Tensor:  # [C, D]
        if self._columns is None:
            logits = ops.inner_products(direction / self._unit, self._rows).mul_(probabilities)
            logits -= probabilities * logits.sum(0)
            product = (logits / self._unit) @ self._rows
        else:
            logits = ops.inner_products(direction, self._rows).mul_(probabilities)
            logits -= probabilities * logits.sum(0)
            product = ops.inner_products(logits, self._columns)
        return product.add_(direction, alpha=self._prior_precision)


def _minimise(objective: _Objective) -> _Point:
    point = objective.start()
    curvature, radius, first = objective.curvature(torch.float32), math.inf, point.slope
    products, exact = 0, False
    for count in range(_MAX_STEPS):
        if not math.isfinite(point.slope) or point.worst <= _GRADIENT_TOLERANCE or products >= _MAX_PRODUCTS[1]:
            break
        if count == _PATIENCE:
            exact = True
        if exact and curvature.dtype != torch.float64:
            curvature, radius = objective.curvature(torch.float64), math.inf
        forcing = max(min(_FORCING[0], math.sqrt(point.slope / first)), _FORCING[1])
        step = _steihaug(curvature, point, radius, forcing)
        products += step.products
        reached = objective.at(point.weight + step.direction)
        if step.decrease > _RESOLVED * abs(point.value):
            agreement = (point.value - reached.value) / step.decrease
        elif reached.slope < point.slope:
            agreement = 1.0
        elif curvature.dtype == torch.float64:
            break  # float64 makes no more progress
        else:
            exact = True
            continue
        length = float(step.direction.norm())
        if not agreement >= _WRONG:  # NaN too
            radius = _SHORTER * length
        elif agreement > _HOLDS:
            radius = max(radius, _LONGER * length)
        if agreement > 0.0:
            point = reached
    return point


def _steihaug(curvature: _Curvature, point: _Point, radius: float, forcing: float) -> _Step:
    """Minimise the quadratic model by conjugate gradients, until the residual is small or the trust region ends."""
    slope, unit = point.slope, point.slope / curvature.size / curvature.size  # unit of ``step``
    downhill = (-point.gradient / slope).to(curvature.dtype)
    probabilities = point.probabilities.T.to(curvature.dtype).contiguous()
    step, residual, direction = torch.zeros_like(downhill), downhill, downhill
    square = float(residual.square().sum())
    for products in range(1, _MAX_PRODUCTS[0] + 1):  # noqa: B007 - read after the loop
        hessian_direction = curvature.times(probabilities, direction)
        along = float((direction * hessian_direction).sum())
        if not along > 0.0:  # rounding: the Hessian is positive definite
            break
        longer = step + (square / along) * direction
        if float(longer.norm()) * unit >= radius:
            share = _to_boundary(step, direction, radius / unit)
            step, residual = step + share * direction, residual - share * hessian_direction
            break
        step, residual = longer, residual - (square / along) * hessian_direction
        before, square = square, float(residual.square().sum())
        if math.sqrt(square) <= forcing:
            break
        direction = residual + (square / before) * direction
    decrease = 0.5 * slope * unit * float(((downhill + residual).double() * step.double()).sum())
    # The rows of a minimum sum to zero. Along their sum only the prior has curvature, too little for float32.
    step = step.double()
    return _Step((step - step.mean(0)) * unit, decrease, products)


def _to_boundary(step: Tensor, direction: Tensor, radius: float) -> float:
    """Return t >= 0 with |step + t direction| = radius, for a step within the radius."""
    square, product = float(direction.square().sum()), float((step * direction).sum())
    missing = max(radius * radius - float(step.square().sum()), 0.0)
    root = product + math.sqrt(product * product + square * missing)
    return missing / root if root > 0.0 else 0.0
