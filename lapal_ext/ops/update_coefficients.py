"""The recursion that absorbs a batch of labels without touching the feature space."""

import torch
from torch import Tensor

from lapal_ext.likelihood import CURVATURES, PSD_SLACK, STEPS, curvature_weight, residual, step_length
from lapal_ext.ops.declare import define


@define(
    shapes={"gram": "[M, b, b]", "logits": "[M, b, C]", "targets": "int64 [M, b]"},
    returns=("[M, b, C]", "[M, b, b]", "[M, b]", "[M, b]"),
    choices={"step": STEPS, "curvature": CURVATURES},
    nonnegative=("gamma",),
    indices={"targets": "C"},
)
def update_coefficients(
    gram: Tensor,  # [M, b, b]
    logits: Tensor,  # [M, b, C]
    targets: Tensor,  # [M, b]
    gamma: float,
    step: str,
    curvature: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients of b observations absorbed in order, for M hypotheses at once.

    With the rows X [b, D], gram = X Sigma X^T and logits = X W^T, the posterior after the batch is
        W' = W + H^T X Sigma        Sigma' = Sigma - U^T diag(beta) U,   T U = X Sigma
    and any point e with column c = X Sigma phi_e has
        logits' = logits + c^T H    v' = v - sum_t beta_t z_t^2,         T z = c.

    Observation t, with c and v from the gram matrix as it stands:
        g_t = a (e_y - softmax(f_t));  f_j += c_j g_t for j >= t;  s'_t = curvature(f_t);
        beta_t = s'_t / (1 + s'_t v);  T_jt = beta_t c_j and gram_jk -= beta_t c_j c_k for j, k > t.
    Finally T^T H = g. The recursion runs in float64 whatever the dtype of its inputs.

    Args:
        gram: [M, b, b]; only its lower triangle is read.
        logits: of the rows under the mean before the batch, [M, b, C].
        targets: labels in [0, C), int64 [M, b].
        gamma: trust in the labels, >= 0; 1 is Bayes.
        step: ``line_search`` or ``newton``, see ``likelihood.step_length``.
        curvature: ``categorical`` or ``gaussian``.

    Returns:
        H [M, b, C]; T [M, b, b], unit lower triangular; beta [M, b], NaN from the observation on at which the
        covariance is no longer positive semi-definite (1 + s v <= 0, or v below -64 eps times its value before the
        batch); and the curvature weights s' [M, b]. O(M b^2 (b + C)).

    Source: arXiv 2210.06112, eq. 8-9 (one observation); the Gram form and the line search are ours.
    """
    floor = -PSD_SLACK * torch.finfo(gram.dtype).eps * gram.diagonal(dim1=1, dim2=2).double()
    g = gram.double().clone()
    f = logits.double().clone()
    n_hypotheses, size, _ = gram.shape
    steps = torch.zeros_like(f)
    triangle = torch.eye(size, dtype=f.dtype, device=f.device).expand(n_hypotheses, size, size).clone()
    beta = f.new_zeros(n_hypotheses, size)
    weights = f.new_zeros(n_hypotheses, size)
    for t in range(size):
        column, variance = g[:, t:, t].clone(), g[:, t, t].clone()
        variance = variance.where(variance >= floor[:, t], float("nan"))
        length = step_length(f[:, t], variance, targets[:, t], gamma, step, curvature)
        steps[:, t] = length[:, None] * residual(f[:, t], targets[:, t])
        f[:, t:] += column[:, :, None] * steps[:, None, t]
        weights[:, t] = curvature_weight(f[:, t], curvature)
        scale = 1.0 + weights[:, t] * variance
        beta[:, t] = (weights[:, t] / scale).where(scale > 0, float("nan"))
        shrunk = beta[:, t, None] * column[:, 1:]
        triangle[:, t + 1 :, t] = shrunk
        g[:, t + 1 :, t + 1 :] -= shrunk[:, :, None] * column[:, None, 1:]
    coefficients = torch.linalg.solve_triangular(triangle.mT, steps, upper=True, unitriangular=True)
    dtype = gram.dtype
    return coefficients.to(dtype).contiguous(), triangle.to(dtype), beta.to(dtype), weights.to(dtype)
