"""Symmetric update of a matrix by many rows at once."""

import torch
from torch import Tensor

from lapal_ext.ops.declare import define


@define(
    shapes={"matrix": "[D, D]", "rows": "[b, D]", "weights": "[b]", "triangle": "[b, b]"},
    returns=("[D, D]",),
)
def rank_n_update(
    matrix: Tensor,  # [D, D]
    rows: Tensor,  # [b, D]
    weights: Tensor,  # [b]
    triangle: Tensor | None,  # [b, b]
) -> Tensor:  # [D, D]
    """matrix + sum_t weights_t u_t u_t^T, symmetric to the bit, where triangle u = rows.

    With the rows X Sigma, the weights -beta and the triangle of ``update_coefficients``, this updates a covariance by b
    observations. With rows phi, weights s and no triangle, it updates a precision. Either takes one read and one write
    of D^2 numbers.

    Args:
        matrix: symmetric, [D, D]; only its lower triangle is read.
        rows: [b, D].
        weights: of either sign, [b].
        triangle: unit lower triangular, [b, b]; only the part below its diagonal is read. None is the identity.

    Returns:
        A fresh matrix [D, D]. O(b D^2 + b^2 D).
    """
    u = rows
    if triangle is not None:
        u = torch.linalg.solve_triangular(triangle, rows, upper=False, unitriangular=True)
    lower = (matrix + (u * weights[:, None]).mT @ u).tril()
    return (lower + lower.tril(-1).mT).contiguous()
