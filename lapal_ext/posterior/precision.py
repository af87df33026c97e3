"""The precision Lambda, inverse of the covariance Sigma: computed from data, inverted, and kept beside the covariance.

All of it runs in float64, whatever the dtype of the features: it happens once per model, and every later update
inherits its error.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import curvature_weight


class _State(NamedTuple):
    """Replaced as a whole, so that threads may read it at any time."""

    covariance: Tensor  # [D, D], the one that this is the inverse of
    version: int  # of the values in it, as torch counts changes in place
    precision: Tensor | None  # [D, D], without the observations; None where it is not known
    observations: tuple[tuple[Tensor, Tensor], ...]  # standardised rows [n, D] and their curvature weights [n]

    def is_inverse_of(self, covariance: Tensor) -> bool:
        return self.covariance is covariance and self.version == _version(covariance)


class PendingPrecision:
    """The inverse of a posterior's covariance; updates only note their rows, and the first read adds them.

    That product with the rows would be a third of the cost of an update, and few callers read the precision. It is not
    a buffer: whoever averages, interpolates or overwrites the buffers of a model would leave it no inverse of the new
    covariance. A covariance that something else has changed or replaced is noticed, and inverted at the next read.

    Args:
        covariance: Sigma, [D, D].
        precision: its inverse, [D, D]; computed at the first read where it is not given.
    """

    def __init__(self, covariance: Tensor, precision: Tensor | None = None) -> None:
        self._state = _State(covariance, _version(covariance), precision, ())

    @torch.no_grad()
    def value(
        self,
        covariance: Tensor,  # [D, D], as it is now
    ) -> Tensor:  # [D, D]
        """The inverse of ``covariance``.

        Raises:
            NotPSDError: ``covariance`` was changed by something else, and has no inverse.
        """
        state = self._state
        if not state.is_inverse_of(covariance):
            state = _State(covariance, _version(covariance), None, ())
        if state.precision is not None and not state.observations:
            return state.precision
        if state.precision is None:
            precision = _inverse_of_any(covariance)
        else:
            rows, weights = (torch.cat(parts) for parts in zip(*state.observations, strict=True))
            precision = add_observations(state.precision, rows, weights)
        self._state = state._replace(precision=precision, observations=())
        return precision

    def add(
        self,
        rows: Tensor,  # [n, D], standardised
        weights: Tensor,  # [n]
        before: Tensor,  # [D, D]
        after: Tensor,  # [D, D]
    ) -> None:
        """Note what the precision gains as the covariance changes from ``before`` to ``after``.

        The product is computed once as many rows as columns are noted.
        """
        state = self._state
        if not state.is_inverse_of(before):
            state = _State(before, _version(before), None, ())
        if state.precision is None:  # inverting ``after``, when it is read, costs no more than inverting ``before`` now
            self._state = _State(after, _version(after), None, ())
            return
        noted = (*state.observations, (rows, weights))
        self._state = _State(after, _version(after), state.precision, noted)
        if sum(len(some) for some, _ in noted) > rows.shape[1]:
            self.value(after)

    def copy(self) -> "PendingPrecision":
        """Another one on the same tensors, none of which is ever changed in place."""
        copied = PendingPrecision.__new__(PendingPrecision)
        copied._state = self._state
        return copied

    def moved(
        self,
        move: Callable[[Tensor], Tensor],
        before: Tensor,  # [D, D]
        after: Tensor,  # [D, D]
    ) -> "PendingPrecision":
        """This one in another dtype or on another device, as ``move`` took the covariance from before to after."""
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
        covariance, known = self._state.covariance, self._state.precision is not None
        return PendingPrecision, (covariance, self.value(covariance) if known else None)


def _version(tensor: Tensor) -> int:
    # Tensors of torch.inference_mode have no count: their changes in place go unnoticed.
    return -1 if tensor.is_inference() else tensor._version


def precision_matrix(
    tiles: Iterator[Tensor],  # [n, D] each, standardised
    weight: Tensor,  # [C, D]
    prior_precision: float,
    curvature: str,
) -> Tensor:  # [D, D]
    """Posterior precision prior_precision I + sum_n s_n phi_n phi_n^T at the weights given, in float64."""
    mean = weight.double()
    precision = prior_precision * torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    for tile in tiles:
        x = tile.double()
        precision = add_observations(precision, x, curvature_weight(x @ mean.T, curvature))
    return precision


def add_observations(
    precision: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    curvature: Tensor,  # [n]
) -> Tensor:  # [D, D]
    """precision + sum_n s_n phi_n phi_n^T, symmetric to the bit."""
    return ops.rank_n_update(precision, features, curvature, None)


def symmetric(
    matrix: Tensor,  # [D, D]
) -> Tensor:  # [D, D]
    """Average of a matrix and its transpose: a matrix product leaves the two triangles apart by rounding."""
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
    return symmetric(torch.cholesky_inverse(factor)).contiguous()  # LAPACK's result is by columns, kernels read rows


def _inverse_of_any(
    covariance: Tensor,  # [D, D]
) -> Tensor:  # [D, D]
    """Inverse of a covariance that may not be positive definite, in its own dtype."""
    wide = covariance.double()
    factor, info = torch.linalg.cholesky_ex(wide)
    if int(info) == 0:
        result = torch.cholesky_inverse(factor)
    else:
        result, info = torch.linalg.inv_ex(wide)
        if int(info) != 0:
            raise NotPSDError("covariance is singular, and so has no precision: fit() the posterior again")
    return symmetric(result).contiguous().to(covariance.dtype)
