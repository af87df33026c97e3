"""L-BFGS for a softmax regression, with exact line searches and a curvature for each class.

The logits Z = X W^T of all rows are kept, class-major. They are linear in W, so one product of the direction with the
features gives the logits V of a whole line, on which the search is a matter of N C exponentials. A second product gives
the gradient. An iteration is these two products; a line search with new products at each trial took twice as many.

Source: Nocedal, "Updating quasi-Newton matrices with limited storage", Math. Comp. 35 (1980); the preconditioner and
the search on stored logits are ours.
"""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.posterior.softmax_fit.class_curvature import ClassCurvature
from lapal_ext.posterior.softmax_fit.objective import Objective

_MEMORY = 20  # steps
_MEASURED = 10  # iterations of a fit from nothing, after which the curvature is measured
_MEASURED_AGAIN = 40, 80, 160, 320  # iterations of any fit
_MOST_ITERATIONS = 400
_TRANSPOSED = 1 << 23  # numbers; up to here the features are transposed once, and not in each product
_MOST_TRIALS = 40  # of a line search
_FEW = 3  # steps that are small together
_TREND = 5  # steps over which it is judged how fast they shrink
_SLOWEST = 0.99  # factor by which steps shrink
_CLOSE = 0.3  # a step is taken when its next correction is relatively smaller
_ROUNDING = 0.1  # of the kept logits, in nats; with more, the method has failed


class Ended(NamedTuple):
    """Where the iterations ended."""

    weight: Tensor  # [C, D]
    change: float  # of the probabilities, that is still to come; infinite if the method failed


class _Line(NamedTuple):
    """The minimum along a direction."""

    length: float  # in directions; not positive or not finite if there is none
    rate: float  # the largest change of a probability per length
    norm: float  # of the direction


class _Step(NamedTuple):
    """Vectors are flat, so that a dot product needs no views: in a fit to few rows, calls take more time than sums."""

    direction: Tensor  # [C D]
    change: Tensor  # of the gradient, [C D]
    solved: Tensor  # M^-1 times it, [C D]
    product: float  # direction . change


class _InverseHessian:
    """M^-1 of ``ClassCurvature``, corrected by the last steps."""

    def __init__(self, curvature: ClassCurvature) -> None:
        self._curvature = curvature
        self._steps: deque[_Step] = deque(maxlen=_MEMORY)
        self._last: tuple[Tensor, Tensor] | None = None  # a gradient, and M^-1 times it, [C D]
        self._shape = torch.Size()  # C, D

    def renew(self) -> None:
        """Take over a curvature that was measured again."""
        if self._last is None:
            return
        gradients = torch.stack([*(step.change for step in self._steps), self._last[0]])
        *solved, last = self._curvature.solve(gradients.unflatten(1, self._shape)).flatten(1)
        self._last = (self._last[0], last)
        steps = [step._replace(solved=one) for step, one in zip(self._steps, solved, strict=True)]
        self._steps.clear()
        self._steps.extend(steps)

    def times(
        self,
        gradient: Tensor,  # [C, D]
        moved: Tensor | None,  # [C, D], the step to the point of the gradient, or None at the first
    ) -> Tensor:  # [C, D]
        """The product with a gradient. M^-1 is linear, so it is applied once for each gradient."""
        flat, solved = gradient.flatten(), self._curvature.solve(gradient[None]).flatten()
        if moved is not None and self._last is not None:
            direction, change = moved.flatten(), flat - self._last[0]
            product = _dot(direction, change)
            if product > 0.0:
                self._steps.append(_Step(direction, change, solved - self._last[1], product))
        self._last, self._shape = (flat, solved), gradient.shape
        shares = []
        rest, result = flat.clone(), solved.clone()
        for step in reversed(self._steps):
            share = _dot(step.direction, rest) / step.product
            rest.add_(step.change, alpha=-share)
            result.add_(step.solved, alpha=-share)
            shares.append(share)
        if self._steps:
            newest = self._steps[-1]
            length = _dot(newest.solved, newest.change)
            if length > 0.0:  # zero where the change of the gradient is so small that its square is
                result.mul_(newest.product / length)
        for step, share in zip(self._steps, reversed(shares), strict=True):
            result.add_(step.direction, alpha=share - _dot(step.change, result) / step.product)
        return result.view_as(gradient)


def _dot(
    a: Tensor,  # [n]
    b: Tensor,  # [n]
) -> float:
    return torch.dot(a, b).item()


def minimise(objective: Objective, start: Tensor | None, tolerance: float) -> Ended:
    """Minimise from ``start`` [C, D], or from zero, until no probability will change by more than ``tolerance``."""
    x, targets, trust, offset, n_classes, prior_precision = objective
    weight = objective.zero(x.dtype) if start is None else start.to(x.dtype)
    points = x.T.contiguous().T if x.numel() <= _TRANSPOSED else x
    logits = x.new_zeros(n_classes, len(x)) if offset is None else offset.clone()
    if start is not None:
        logits += ops.inner_products.unchecked(weight, points)
    none = logits[None][:0]
    curvature = ClassCurvature(objective, x.dtype)
    if start is None:
        curvature.share(logits.softmax(0))
    else:
        curvature.measure(logits.softmax(0), 0)
    inverse_hessian = _InverseHessian(curvature)
    moved: Tensor | None = None
    changes: list[float] = []  # the largest change of a probability in each step
    # The kept logits move by at most the path times the norm of their row, with a rounding of eps times that. Along a
    # direction in which a tiny prior is all the curvature, a step can be so long that nothing else of W is left.
    numbers = torch.finfo(x.dtype)
    path, longest = 0.0, _ROUNDING / numbers.eps / max(float(x.norm(dim=1).max()), numbers.tiny)
    for iteration in range(_MOST_ITERATIONS):
        gradient = ops.softmax_gradient.unchecked(x, logits, targets, trust, none)[1]
        gradient.add_(weight, alpha=prior_precision)
        is_measured_now = iteration in _MEASURED_AGAIN or (start is None and iteration == _MEASURED)
        if is_measured_now:
            curvature.measure(logits.softmax(0), iteration)
        if not curvature.usable:
            break
        if is_measured_now:
            inverse_hessian.renew()
        direction = inverse_hessian.times(gradient, moved).neg_()
        along = ops.inner_products.unchecked(direction, points)  # [C, N]
        line = _search(objective, logits, along, weight, direction)
        path += line.length * line.norm
        if not line.length > 0.0 or not path < longest:
            break
        moved = direction * line.length
        weight = weight + moved
        logits.add_(along, alpha=line.length)
        changes.append(line.length * line.rate)
        if _still_to_come(changes) <= tolerance and objective.is_near(gradient):
            return Ended(weight, _still_to_come(changes))
    return Ended(weight, math.inf)


def _still_to_come(changes: list[float]) -> float:
    """The largest change of a probability that further steps will make, as estimated from those of the steps so far.

    A single step may be small by chance, so the largest of a few counts too. If these shrink by a factor q per step,
    all further steps add up to q / (1 - q) of the last one, or to less where they turn: on the feature sets of
    ``lapal_ext.study``, where q is 0.6 to 0.8, to 0.2 to 1.0 of it. So a third of that sum is taken.
    """
    if len(changes) < _FEW:
        return math.inf
    few = max(changes[-_FEW:])
    before = changes[-_FEW - _TREND : -_TREND]
    steps_were_made = few > 0.0 and max(before, default=0.0) > 0.0
    q = min((few / max(before)) ** (1.0 / _TREND), _SLOWEST) if steps_were_made else 0.0
    return max(changes[-1], 0.5 * few) * max(1.0, q / (1.0 - q) / 3.0)


def _search(
    objective: Objective,
    logits: Tensor,  # [C, N]
    along: Tensor,  # [C, N]
    weight: Tensor,  # [C, D]
    direction: Tensor,  # [C, D]
) -> _Line:
    """Minimise the objective along a direction.

    The slope grows with the length, since the objective is convex: Newton's method for its root, within a bracket.
    """
    flat = direction.flatten()
    slope_of_prior = objective.prior_precision * _dot(weight.flatten(), flat)
    square = _dot(flat, flat)
    curvature_of_prior = objective.prior_precision * square
    norm, low, high, length = math.sqrt(square), 0.0, math.inf, 1.0
    for _ in range(_MOST_TRIALS):
        derivatives = ops.directional_derivatives.unchecked(logits, along, objective.targets, objective.trust, length)
        slope, steepness, rate = map(float, derivatives)
        slope += slope_of_prior + length * curvature_of_prior
        steepness += curvature_of_prior
        if not math.isfinite(slope) or not steepness > 0.0:
            return _Line(math.nan, rate, norm)
        low, high = (low, length) if slope > 0.0 else (length, high)
        proposal = length - slope / steepness
        if not low < proposal < high:
            proposal = 0.5 * (low + high) if high < math.inf else 2.0 * length
        close = abs(proposal - length) <= _CLOSE * proposal
        length = proposal
        if close:
            return _Line(length, rate, norm)
    return _Line(length if high < math.inf else math.nan, rate, norm)
