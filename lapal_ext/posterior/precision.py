"""The precision Lambda, inverse of the covariance Sigma: computed from data, inverted, and stored with the covariance.

Fits and inversions run in float64 whatever the dtype of the features: they happen once per model, and every later
update inherits their error.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.entries import entry, outside_inference_mode
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import curvature_weight
from lapal_ext.validation.tensors import count_of_changes

_FEW = 3  # rows are few if D is this many times their number: at D = 385 the two ways take equal time at 1.5
_MOST_CONDITION = 1e8  # of the kernel matrix of few rows, in float64


class _State(NamedTuple):
    """Replaced as a whole, so that threads may read it at any time."""

    covariance: Tensor  # [D, D], whose inverse is precision + observations
    version: int  # of the covariance: torch's count of its changes in place
    precision: Tensor | None  # [D, D], without the observations; None if it has not been computed
    observations: tuple[tuple[Tensor, Tensor], ...]  # standardised rows [n, D] and their curvature weights [n]

    def is_inverse_of(self, covariance: Tensor) -> bool:
        return self.covariance is covariance and self.version == count_of_changes(covariance)


class PendingPrecision:
    """The inverse of a posterior's covariance. Updates only record their rows, and the next read adds them.

    Adding them at once would be a third of the cost of an update, and few callers read the precision. It is not a
    buffer: code that averages, interpolates or overwrites the buffers of a model would break the relation to the
    covariance. If other code changes or replaces the covariance, this is detected, and the next read inverts the new
    one.

    Args:
        covariance: Sigma, [D, D].
        precision: its inverse, [D, D]; by default the first read computes it.
    """

    def __init__(self, covariance: Tensor, precision: Tensor | None = None) -> None:
        self._state = _State(covariance, count_of_changes(covariance), precision, ())

    @entry
    @outside_inference_mode
    @torch.no_grad()
    def value(
        self,
        covariance: Tensor,  # [D, D], as it is now
    ) -> Tensor:  # [D, D]
        """The inverse of ``covariance``.

        Raises:
            NotPSDError: other code has changed ``covariance``, and it has no inverse.
        """
        state = self._state
        if not state.is_inverse_of(covariance):
            state = _State(covariance, count_of_changes(covariance), None, ())
        if state.precision is not None and not state.observations:
            return state.precision
        if state.precision is None:
            precision = _inverse_of_any(covariance)
        else:
            rows, weights = (torch.cat(parts) for parts in zip(*state.observations, strict=True))
            precision = add_observations(state.precision, rows, weights)
        self._state = state._replace(precision=precision, observations=())
        return precision

    def plus(
        self,
        rows: Tensor,  # [n, D], standardised
        weights: Tensor,  # [n]
        before: Tensor,  # [D, D]
        after: Tensor,  # [D, D]
    ) -> "PendingPrecision":
        """Return the precision after the observations that change the covariance from ``before`` to ``after``.

        They are recorded, and added as soon as there are more recorded rows than columns.
        """
        state = self._state
        if not state.is_inverse_of(before) or state.precision is None:
            return PendingPrecision(after)  # to invert ``after``, when it is read, costs no more than ``before`` now
        recorded = (*state.observations, (rows, weights))
        result = PendingPrecision(after, state.precision)
        result._state = result._state._replace(observations=recorded)
        if sum(len(some) for some, _ in recorded) > rows.shape[1]:
            result.value(after)
        return result

    def copy(self) -> "PendingPrecision":
        """Return a copy that shares the tensors; they are never changed in place."""
        copied = PendingPrecision.__new__(PendingPrecision)
        copied._state = self._state
        return copied

    def moved(
        self,
        move: Callable[[Tensor], Tensor],
        before: Tensor,  # [D, D]
        after: Tensor,  # [D, D]
    ) -> "PendingPrecision":
        """Return this precision in another dtype or on another device; ``move`` turned ``before`` into ``after``."""
        if not self._state.is_inverse_of(before) or self._state.precision is None:
            return PendingPrecision(after)
        return PendingPrecision(after, move(self.value(before)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "PendingPrecision":
        state = self._state
        covariance = copy.deepcopy(state.covariance, memo)
        if not state.is_inverse_of(state.covariance):
            return PendingPrecision(covariance)
        copied = PendingPrecision(covariance, copy.deepcopy(state.precision, memo))
        copied._state = copied._state._replace(observations=copy.deepcopy(state.observations, memo))
        return copied

    def __reduce__(self) -> tuple[type["PendingPrecision"], tuple[Tensor, Tensor | None]]:
        covariance = self._state.covariance
        known = self._state.precision is not None and self._state.is_inverse_of(covariance)
        return PendingPrecision, (covariance, self.value(covariance) if known else None)


def precision_matrix(
    tiles: Iterator[Tensor],  # [n, D] each, standardised
    weight: Tensor,  # [C, D]
    prior_precision: float,
    curvature: str,
    trust: Tensor | None = None,  # [N]
) -> tuple[Tensor, Tensor | None]:  # [D, D], [D, D]
    """Posterior precision prior_precision I + sum_n t_n s_n phi_n phi_n^T at the weights given, in float64.

    For few rows its inverse is returned too, which then takes O(N D^2) in place of O(D^3).
    """
    mean = weight.double()
    precision = prior_precision * torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    x, curvatures = mean[:0], mean[:0, 0]
    count = 0
    for tile in tiles:
        x = tile.double()
        curvatures = curvature_weight(ops.inner_products.unchecked(x, mean), curvature)
        if trust is not None:
            curvatures = curvatures * trust[count : count + len(x)]
        count += len(x)
        precision = add_observations(precision, x, curvatures)
    is_few = count == len(x) and _FEW * count <= mean.shape[1]
    return precision, _inverse_for_few_rows(x, curvatures, prior_precision) if is_few else None


def add_observations(
    precision: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    curvature: Tensor,  # [n]
) -> Tensor:  # [D, D]
    """precision + sum_n s_n phi_n phi_n^T, symmetric to the bit."""
    return ops.rank_n_update.unchecked(precision, features, curvature, None)


def symmetric(
    matrix: Tensor,  # [D, D]
) -> Tensor:  # [D, D]
    """Average of a matrix and its transpose: the two triangles of a matrix product may differ by rounding."""
    return torch.add(matrix, matrix.T).mul_(0.5)


def inverse(
    precision: Tensor,  # [D, D]
) -> Tensor:  # [D, D]
    """Covariance of a precision matrix by Cholesky in float64, symmetric to the bit.

    Raises:
        NotPSDError: the precision is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(precision.double())
    if int(info) != 0:
        raise NotPSDError(
            "precision is not positive definite to working accuracy; a larger prior_precision or standardize=True helps"
        )
    return symmetric(torch.cholesky_inverse(factor)).contiguous()  # LAPACK's result is column-major, kernels read rows


def _inverse_for_few_rows(
    features: Tensor,  # [n, D] float64
    curvature: Tensor,  # [n] float64
    prior_precision: float,
) -> Tensor | None:  # [D, D] float64
    """(lambda I + A^T A)^-1 = (I - A^T (lambda I + A A^T)^-1 A) / lambda for the rows A = sqrt(s) phi, by Woodbury.

    None where the rows count so much more than the prior that rounding of I / lambda would be seen.
    """
    rows = features * curvature.sqrt()[:, None]
    kernel = ops.inner_products.unchecked(rows, rows)
    kernel.diagonal().add_(prior_precision)
    factor, info = torch.linalg.cholesky_ex(kernel)
    if not float(kernel.diagonal().sum()) <= _MOST_CONDITION * prior_precision or int(info) != 0:
        return None
    scale = factor.diagonal()  # of the columns, so that the triangle has a diagonal of ones
    prior = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device).div_(prior_precision)
    return ops.rank_n_update.unchecked(prior, rows, -1.0 / (prior_precision * scale.square()), factor / scale)


def _inverse_of_any(
    covariance: Tensor,  # [D, D]
) -> Tensor:  # [D, D]
    """Inverse of a covariance that may not be positive definite, in its own dtype."""
    matrix = covariance.double()
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) == 0:
        result = torch.cholesky_inverse(factor)
    else:
        result, info = torch.linalg.inv_ex(matrix)
        if int(info) != 0:
            raise NotPSDError("covariance is singular, and so has no precision: fit() the posterior again")
    return symmetric(result).contiguous().to(covariance.dtype)
