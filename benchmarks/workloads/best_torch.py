"""The best plain torch we know for W1, W4 and W8, on the same algebra: what a kernel has to beat.

The references are written to be read. ``ops.update_coefficients.reference`` serves many hypotheses and both step rules
with some thirty calls per observation; ``ops.lookahead_loss.reference`` serves every loss and link.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext import LastLayerLaplace, ops


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


def herd(
    posterior: LastLayerLaplace,
    pool: Tensor,  # [N, D]
    labelled: Tensor,  # [L, D]
    count: int,
    answers: Tensor | None = None,  # [N]
) -> tuple[Tensor, Tensor]:  # [count] int64, [count]
    """Uncertainty herding with the kernel matrix in memory. The model absorbs each answer before the next pick."""
    rows, known = (torch.nn.functional.normalize(x, dim=1) for x in (pool, labelled))
    between = (2.0 - 2.0 * known @ known.T).fill_diagonal_(torch.inf)
    factor = 2.0 / float(between.amin(1).median())
    kernel = (rows @ rows.T).sub_(1.0).clamp_(max=0.0).mul_(factor).exp_()
    covered = (rows @ known.T).sub_(1.0).clamp_(max=0.0).mul_(factor).exp_().amax(1)
    weight = margins(posterior, pool)
    gains = torch.empty_like(kernel)
    picks, values = [], []
    for _ in range(count):
        gain = torch.sub(kernel, covered, out=gains).clamp_(min=0.0) @ weight
        gain[picks] = -1.0
        pick = int(gain.argmax())
        picks.append(pick)
        values.append(gain[pick])
        covered = torch.maximum(covered, kernel[pick])
        if answers is not None:
            posterior = posterior.condition_on(pool[[pick]], answers[[pick]])
            weight = margins(posterior, pool)
    return torch.tensor(picks), torch.stack(values)


def margins(posterior: LastLayerLaplace, pool: Tensor) -> Tensor:
    """One minus the difference of the two largest probabilities."""
    top = posterior.predict_logits(pool).softmax(1).topk(2, dim=1).values
    return 1.0 - (top[:, 0] - top[:, 1])


def product_of_herding(pool: Tensor) -> Tensor:
    """The matrix product of the kernel matrix alone."""
    return pool @ pool.T
