"""Fitting without a posterior in hand: standardising, the MAP weights, the precision matrix and its inverse.

Everything here runs in float64 whatever the dtype of the features: it happens once per model, and every later update
inherits its error.
"""

import importlib
import math
import sys
import threading
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext._checks import check_overflow
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import curvature_weight

TILE_ROWS = 8192  # rows held in float64 at a time, 25 MB at D = 384
_COMPILER = "torch._dynamo"
_GRADIENT_TOLERANCE = 1e-6  # largest entry of the gradient of the summed objective
_MAX_ITERATIONS = 2000


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


def map_weights(
    features: Tensor,  # [N, D]
    targets: Tensor,  # [N] int64
    num_classes: int,
    prior_precision: float,
) -> Tensor:  # [C, D]
    """Minimise sum_n cross_entropy(W phi_n, y_n) + prior_precision / 2 |W|^2 by L-BFGS, to convergence.

    Returns:
        Float64 weights [C, D]; every column is penalised alike, a constant feature (the bias) too.

    Raises:
        ValueError: the objective overflows.

    Warns:
        RuntimeWarning: the gradient is not within tolerance after the last iteration.
    """
    _import_compiler()
    x = features.double()
    weight = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, device=x.device)
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.LBFGS(
        [weight],
        max_iter=_MAX_ITERATIONS,
        max_eval=2 * _MAX_ITERATIONS,
        tolerance_grad=_GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    rows = torch.arange(len(targets), device=x.device)

    def objective() -> Tensor:
        log_p = (x @ weight.T).log_softmax(1)
        gap = log_p.exp()
        gap[rows, targets] -= 1.0
        torch.addmm(weight, gap.T, x, beta=prior_precision, out=weight.grad)
        return 0.5 * prior_precision * weight.square().sum() - log_p[rows, targets].sum()

    optimizer.step(objective)
    objective()
    worst = float(weight.grad.abs().max())
    if not math.isfinite(worst):
        raise ValueError("features or prior_precision must be smaller, got values with which the fit overflows")
    if worst > 10 * _GRADIENT_TOLERANCE:
        warnings.warn(f"fit_map stopped with a gradient of {worst:.1e}", RuntimeWarning, stacklevel=3)
    return weight


def _import_compiler() -> None:
    """Import what torch's optimizers import at their first use, in a thread that has no frames of ours above it.

    The import leaves a cycle through all frames above it, whose tensors, and process groups, would stay until the
    garbage collector comes by.
    """
    if _COMPILER not in sys.modules:
        thread = threading.Thread(target=importlib.import_module, args=(_COMPILER,))
        thread.start()
        thread.join()


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
