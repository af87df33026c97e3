"""Fitting without a posterior in hand: standardising, the precision matrix and its inverse.

Everything here runs in float64 whatever the dtype of the features: it happens once per model, and every later update
inherits its error.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import curvature_weight
from lapal_ext.validation.tensors import check_overflow

TILE_ROWS = 8192  # rows held in float64 at a time, 25 MB at D = 384


def tiles(
    features: Tensor,  # [N, D]
    rows: int = TILE_ROWS,
) -> Iterator[Tensor]:
    """Yield row tiles of a matrix, views where the layout allows."""
    for start in range(0, features.shape[0], rows):
        yield features[start : start + rows]


def standardization(
    features: Tensor,  # [N, D]
) -> tuple[Tensor, Tensor]:  # [D], []
    """Centre and one global scale, so that (phi - centre) * scale has mean zero and mean square one.

    One scale for all features keeps their relative sizes, which an encoder chose; the prior precision and gamma then
    mean the same on every feature set. Constant features keep the scale one.
    """
    n_rows, n_features = features.shape
    centre = sum((tile.double().sum(0) for tile in tiles(features)), features.new_zeros(n_features).double()) / n_rows
    squares = sum(((tile.double() - centre).square().sum() for tile in tiles(features)), centre.new_zeros(()))
    deviation = (squares / (n_rows * n_features)).sqrt()
    scale = torch.where(deviation > 0, deviation.reciprocal(), 1.0).to(features.dtype)
    check_overflow("features", deviation, scale)
    return centre.to(features.dtype), scale


def precision_matrix(
    features: Iterator[Tensor],  # tiles [n, D]
    weight: Tensor,  # [C, D]
    prior_precision: float,
    curvature: str,
) -> Tensor:  # [D, D]
    """Posterior precision prior_precision I + sum_n s_n phi_n phi_n^T at the weights given, in float64."""
    mean = weight.double()
    precision = prior_precision * torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    for tile in features:
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
    """Average of a matrix and its transpose: a GEMM leaves the two triangles apart by rounding."""
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
    return symmetric(torch.cholesky_inverse(factor)).contiguous()  # LAPACK's comes by columns; kernels read rows
