"""Value, gradient and Hessian products of the cross-entropy of a linear softmax layer."""

import torch
from torch import Tensor

from lapal_ext.ops.declare import define


@define(
    shapes={
        "features": "[N, D]",
        "logits": "[C, N]",
        "targets": "int64 [N]",
        "trust": "[N]",
        "directions": "[H, C, N]",
    },
    returns=("float64 []", "[C, D]", "[H, C, D]"),
    indices={"targets": "C"},
)
def softmax_gradient(
    features: Tensor,  # [N, D]
    logits: Tensor,  # [C, N]
    targets: Tensor,  # [N]
    trust: Tensor,  # [N]
    directions: Tensor,  # [H, C, N]
) -> tuple[Tensor, Tensor, Tensor]:  # [], [C, D], [H, C, D]
    """Derivatives of L(W) = sum_n t_n cross_entropy(z_n, y_n) where the logits z = W X^T are known.

    gradient = sum_n t_n (p_n - e(y_n)) x_n^T with p_n = softmax(z_n); and for a direction V with logits v = V X^T,
    H V = sum_n t_n (p_n * (v_n - p_n.v_n)) x_n^T. Logits are linear in W: a solver that moves along V adds a multiple
    of v to z, and needs no product with the features to evaluate any point of the line.

    Args:
        features: X, [N, D].
        logits: z, class-major, [C, N].
        targets: y, [N].
        trust: t, weight of every row, [N].
        directions: v of H directions, H >= 0, class-major, [H, C, N].

    Returns:
        L in float64; its gradient [C, D]; and the Hessian products [H, C, D]. O((1 + H) N C D). The kernels sum some
        hundred rows in the dtype of the features, and these sums in float64, in an order that the sizes alone decide.
    """
    p = logits.softmax(0)
    # 1 - p and -log p of the target as sums over the other classes, which do not cancel where p is nearly one.
    label = logits.gather(0, targets[None])
    others = logits.scatter(0, targets[None], -torch.inf).logsumexp(0) - label[0]
    loss = (trust * others.logaddexp(torch.zeros_like(others))).double().sum()
    wrong = p.scatter(0, targets[None], 0.0)
    gap = trust * wrong.scatter(0, targets[None], -wrong.sum(0, keepdim=True))
    # Relative to the winner: where it has nearly all probability, v and its mean are nearly the same number.
    winner = logits.argmax(0)[None, None].expand(directions.shape[0], 1, -1)
    relative = directions - directions.gather(1, winner)
    moved = trust * p * (relative - (p * relative).sum(1, keepdim=True))
    gradient, products = gap @ features, moved @ features
    return loss, gradient.contiguous(), products.contiguous()
