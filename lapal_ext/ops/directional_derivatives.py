"""Derivatives of the cross-entropy of many rows along one direction."""

import torch
from torch import Tensor

from lapal_ext.ops.declare import define


@define(
    shapes={"logits": "[C, N]", "direction": "[C, N]", "targets": "int64 [N]", "trust": "[N]"},
    returns=("float64 []", "float64 []", "float64 []"),
    nonnegative=("step",),
    indices={"targets": "C"},
)
def directional_derivatives(
    logits: Tensor,  # [C, N]
    direction: Tensor,  # [C, N]
    targets: Tensor,  # [N]
    trust: Tensor,  # [N]
    step: float,
) -> tuple[Tensor, Tensor, Tensor]:  # [], [], []
    """First and second derivative of L(s) = sum_n t_n cross_entropy(z_n + s v_n, y_n) at ``step``, for a line search.

    L' = sum_n t_n (p_n.v_n - v_n[y_n]) and L'' = sum_n t_n (p_n.v_n^2 - (p_n.v_n)^2) with p_n = softmax(z_n + s v_n). L
    is convex, so L' grows with s. The third result is the largest |dp_nk / ds| = p_nk |v_nk - p_n.v_n| of all rows and
    classes: how far a step changes any probability.

    Args:
        logits: z, class-major, [C, N].
        direction: v, class-major, [C, N].
        targets: y, [N].
        trust: t, weight of every row, [N]. The third result does not depend on it.
        step: s >= 0.

    Returns:
        Three numbers in float64. O(N C). The order of their sums depends on N alone.
    """
    moved = logits + step * direction
    p = moved.softmax(0)
    # Relative to the winner: where it has nearly all probability, v and its mean are nearly the same number.
    relative = direction - direction.gather(0, moved.argmax(0)[None])
    mean = (p * relative).sum(0)
    rates = p * (relative - mean)
    first = (trust * (mean - relative.gather(0, targets[None])[0])).double().sum()
    second = (trust * (rates * (relative - mean)).sum(0)).double().sum()
    largest = rates.abs().amax().double() if rates.numel() else torch.zeros_like(first)
    return first, second, largest
