"""A trust-region Newton method for a softmax regression, in float64: exact and slow.

It goes on where L-BFGS in float32 ends: for a tolerance that float32 does not resolve, and for features so badly scaled
that float32 does not resolve them. The step between two evaluations comes from conjugate gradients, preconditioned by
the curvature M of each class. The trust region is a ball in the norm |s|_M = sqrt(s . M s), whose value conjugate
gradients know without a product by M: it follows from the scalars of the recurrence.

Source: Steihaug, "The conjugate gradient method and trust regions in large scale optimization", SIAM J. Numer. Anal.
20 (1983); for the norm Conn, Gould, Toint, "Trust-region methods" (2000), section 7.5.1; for logistic regression Lin,
Weng, Keerthi, "Trust region Newton method for large-scale logistic regression", JMLR 9 (2008).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.posterior.softmax_fit.class_curvature import ClassCurvature
from lapal_ext.posterior.softmax_fit.objective import Fit, Objective
from lapal_ext.tiles import row_tiles

_GRADIENT = 1e-8  # the method ends when the largest entry of the gradient of the objective is below this
_LARGE_GRADIENT = 1e-5  # it has failed if it ends with a larger entry, because float64 makes no more progress
_MOST_STEPS = 500
_MOST_PRODUCTS = 500, 20_000  # with the Hessian: in one step, and in all
_MEASURED = 40  # products, after which the curvature is measured again
_FORCING = 0.5, 0.03  # residual of a step, relative to the gradient: far from the minimum, and near it
_WRONG, _HOLDS = 0.25, 0.75  # actual over predicted decrease: below, the radius shrinks; above, it grows
_SHORTER, _LONGER = 0.3, 2.0  # the new radius, in lengths of the last step
_SAFE = 0.03  # of the tolerance: conjugate gradients leave a part of each step to the next one
_RESOLVED = 1e-10  # a decrease relative to the objective; a smaller one is rounding


class _Point(NamedTuple):
    weight: Tensor  # [C, D] float64
    value: float
    gradient: Tensor  # [C, D] float64
    logits: Tensor  # [C, N] float64

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
    length: float  # |direction|_M
    decrease: float  # of the objective, as the quadratic model predicts it
    products: int  # that it took


class _Problem:
    """The objective in float64, a tile of rows at a time: all features in float64 would take too much memory."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def at(self, weight: Tensor) -> _Point:
        objective = self.objective
        logits = weight.new_zeros(len(weight), len(objective.features))
        if objective.offset is not None:
            logits.copy_(objective.offset)
        value = 0.5 * objective.prior_precision * float(weight.square().sum())
        gradient = objective.prior_precision * weight
        for rows in row_tiles(len(objective.features)):
            x = objective.features[rows].double()
            logits[:, rows] += ops.inner_products.unchecked(weight, x)
            loss, slope, _ = self._differentiate(rows, x, logits, None)
            value += float(loss)
            gradient += slope
        return _Point(weight, value, gradient, logits)

    def hessian_times(self, point: _Point, direction: Tensor) -> Tensor:  # [C, D]
        product = self.objective.prior_precision * direction
        for rows in row_tiles(len(self.objective.features)):
            x = self.objective.features[rows].double()
            along = ops.inner_products.unchecked(direction, x)
            product += self._differentiate(rows, x, point.logits, along)[2][0]
        return product

    def _differentiate(
        self, rows: slice, x: Tensor, logits: Tensor, along: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        objective, logits = self.objective, logits[:, rows]
        directions = logits[None][:0] if along is None else along[None]
        return ops.softmax_gradient.unchecked(
            x, logits, objective.targets[rows], objective.trust[rows].double(), directions
        )


def minimise(objective: Objective, start: Tensor | None, tolerance: float) -> Fit:
    """Minimise from ``start`` [C, D], or from zero, until no probability will change by more than ``tolerance``.

    With a tolerance of zero it goes on until the gradient vanishes to rounding.
    """
    problem = _Problem(objective)
    point = problem.at(objective.zero(torch.float64) if start is None else start.double())
    curvature = ClassCurvature(objective, torch.float64)
    radius, first, products, measured = math.inf, point.slope, 0, -_MEASURED
    for _ in range(_MOST_STEPS):
        if not point.is_finite or point.worst <= _GRADIENT or products >= _MOST_PRODUCTS[1]:
            break
        forcing = max(min(_FORCING[0], math.sqrt(point.slope / first)), _FORCING[1])
        if products - measured >= _MEASURED:
            curvature.measure(point.logits.softmax(0), products)
            measured = products
        step = _steihaug(problem, point, curvature, radius, forcing)
        products += step.products
        reached = problem.at(point.weight + step.direction)
        if step.decrease > _RESOLVED * abs(point.value):
            agreement = (point.value - reached.value) / step.decrease
        elif _steepness(curvature, reached) < _steepness(curvature, point):
            agreement = 1.0
        else:
            break  # float64 makes no more progress
        if not agreement >= _WRONG:  # NaN too
            radius = _SHORTER * step.length
        elif agreement > _HOLDS:
            radius = max(radius, _LONGER * step.length)
        if agreement > 0.0:
            change = float((reached.logits.softmax(0) - point.logits.softmax(0)).abs().amax())
            point = reached
            is_small = change <= _SAFE * tolerance and step.length < radius and agreement > _HOLDS
            if is_small and problem.objective.is_near(point.gradient):
                return Fit(point.weight, True, point.worst)
    return Fit(point.weight, point.worst <= _LARGE_GRADIENT, point.worst if point.is_finite else math.nan)


def _steihaug(problem: _Problem, point: _Point, curvature: ClassCurvature, radius: float, forcing: float) -> _Step:
    """Minimise the quadratic model by conjugate gradients, until the residual is small or the trust region ends."""
    slope = point.slope
    downhill, reach = -point.gradient / slope, radius / slope
    step, residual = torch.zeros_like(downhill), downhill
    solved = direction = _solve(curvature, residual)
    first = square = float((residual * solved).sum())  # residual . M^-1 residual
    step_square, product, direction_square = 0.0, 0.0, square  # step . M step, step . M direction, ...
    for products in range(1, _MOST_PRODUCTS[0] + 1):  # noqa: B007 - read after the loop
        hessian_direction = problem.hessian_times(point, direction)
        along = float((direction * hessian_direction).sum())
        if not (along > 0.0 and square > 0.0):  # rounding: the Hessian and M are positive definite
            break
        share, missing = square / along, max(reach * reach - step_square, 0.0)
        grown = 2.0 * share * product + share * share * direction_square
        ends = grown >= missing
        if ends:
            share, grown = _to_boundary(missing, product, direction_square), missing
        step, residual = step + share * direction, residual - share * hessian_direction
        step_square += grown
        if ends:
            break
        solved = _solve(curvature, residual)
        before, square = square, float((residual * solved).sum())
        if square <= forcing**2 * first:
            break
        ratio = square / before
        direction = solved + ratio * direction
        product = ratio * (product + share * direction_square)
        direction_square = square + ratio * ratio * direction_square
    decrease = 0.5 * slope * slope * float(((downhill + residual) * step).sum())
    return _Step((step - step.mean(0)) * slope, math.sqrt(max(step_square, 0.0)) * slope, decrease, products)


def _steepness(curvature: ClassCurvature, point: _Point) -> float:
    """The gradient times M^-1 times the gradient."""
    return float((point.gradient * _solve(curvature, point.gradient)).sum())


def _solve(curvature: ClassCurvature, residual: Tensor) -> Tensor:  # [C, D]
    return curvature.solve(residual[None])[0] if curvature.usable else residual


def _to_boundary(missing: float, product: float, direction_square: float) -> float:
    """Return t >= 0 with |step + t direction|^2 = |step|^2 + ``missing``; ``product`` is step . M direction."""
    root = product + math.sqrt(product * product + direction_square * missing)
    return missing / root if root > 0.0 else 0.0
