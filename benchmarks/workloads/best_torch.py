"""The best plain torch we know for W1 and W4, on the same algebra: what a kernel has to beat.

The references are written to be read. ``ops.update_coefficients.reference`` serves many hypotheses and both step rules
with some thirty calls per observation; ``ops.lookahead_loss.reference`` serves every loss and link.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext import ops


def update(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
) -> tuple[Tensor, Tensor]:
    """Two GEMMs around a recursion in float32 on the Gram matrix."""
    columns = features @ covariance
    gram = columns @ features.T
    logits = features @ mean.T
    factors, steps = torch.empty_like(gram), torch.empty_like(logits)  # rows beta_t c_t, and a_t (e_y - p)
    roots = gram.new_empty(len(features))
    for t, target in enumerate(targets.tolist()):
        column = gram[t]
        variance = float(column[t])
        residual = logits[t].softmax(0).neg_()
        top = -float(residual.amin())
        residual[target] += 1.0
        torch.mul(residual, 1.0 / (1.0 + top * (1.0 - top) * variance), out=steps[t])
        logits[t:].addr_(column[t:], steps[t])
        top = float(logits[t].softmax(0).amax())
        s = top * (1.0 - top)
        beta = s / (1.0 + s * variance)
        torch.mul(column, beta, out=factors[t])
        roots[t] = beta**0.5
        rest = column[t + 1 :]
        gram[t + 1 :, t + 1 :].addr_(rest, rest, alpha=-beta)
    triangle = factors.T.tril(-1).fill_diagonal_(1.0)
    directions = torch.linalg.solve_triangular(triangle, columns, upper=False, unitriangular=True)
    root = directions * roots[:, None]
    return torch.addmm(mean, steps.T, directions), torch.addmm(covariance, root.T, root, alpha=-1.0)


def products_of_update(
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
) -> tuple[Tensor, Tensor]:
    """The two large GEMMs of ``update`` alone."""
    columns = features @ covariance
    return columns, torch.addmm(covariance, columns.T, columns, alpha=-1.0)


def look_ahead(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    pool: Tensor,  # [N, D]
    labels: Tensor,  # [N]
    batches: Tensor,  # [M, b]
    eval_features: Tensor,  # [E, D]
    eval_targets: Tensor,  # [E]
) -> Tensor:  # [M]
    """Mean cross-entropy after each batch: one GEMM for the columns of all rows, then one small one per batch."""
    distinct, local = batches.unique(return_inverse=True)
    rows = pool[distinct]
    directions = rows @ covariance
    gram = directions[local] @ rows[local].mT
    before = (rows @ mean.T)[local]
    h, *_ = ops.update_coefficients.reference(gram, before, labels[batches], 1.0, "newton", "categorical")
    columns = directions @ eval_features.T
    logits = eval_features @ mean.T
    moved = (torch.addmm(logits, columns[batch].T, steps) for batch, steps in zip(local, h, strict=True))
    return torch.stack([cross_entropy(after, eval_targets) for after in moved])
