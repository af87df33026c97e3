"""Absorbing labels into a mean and a covariance: the exact blocked update, as a function of tensors."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.errors import NotPSDError
from lapal_ext.fitting import symmetric

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
        NotPSDError: the covariance is not, or no longer, positive semi-definite.
    """
    weights = features.new_empty(features.shape[0])
    for start in range(0, features.shape[0], _BLOCK):
        block = slice(start, start + _BLOCK)
        mean, covariance, weights[block] = _absorb_block(
            mean, covariance, features[block], targets[block], step, gamma, curvature, start
        )
    return mean, covariance, weights


def _absorb_block(
    mean: Tensor,
    covariance: Tensor,
    x: Tensor,
    targets: Tensor,
    step: str,
    gamma: float,
    curvature: str,
    first_row: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Two GEMMs around the recursion of ``update_coefficients``, whose docstring has the formulas."""
    columns = x @ covariance
    coefficients, triangle, beta, weights = (
        result[0]
        for result in ops.update_coefficients(
            (columns @ x.T)[None], (x @ mean.T)[None], targets[None], gamma, step, curvature
        )
    )
    if not bool(beta.isfinite().all()):
        row = first_row + int(beta.isfinite().logical_not().int().argmax())
        raise NotPSDError(
            f"covariance is not positive semi-definite along row {row} of features: refresh() it, or use a larger "
            "prior_precision or standardised features"
        )
    if x.shape[0] == 1:
        downdated, _ = ops.rank_one_update(covariance[None], x, weights)
        return mean + coefficients.T @ columns, downdated[0], weights
    u = torch.linalg.solve_triangular(triangle, columns, upper=False, unitriangular=True)
    root = u * beta.sqrt()[:, None]
    return mean + coefficients.T @ columns, symmetric(torch.addmm(covariance, root.T, root, alpha=-1)), weights
