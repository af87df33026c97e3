"""The exact line search along the direction of one label: the step length that minimises the penalised loss.

C++ and CUDA repeat it in ``csrc/cpu/passes/line_search.h`` and ``csrc/shared/line_search_bracket.h``.
"""

import torch
from torch import Tensor

_TOLERANCE = 1e-12  # relative to the step length
_MAX_ITERATIONS = 128  # bisection alone needs 40 of them for _TOLERANCE; Newton usually 5


def line_search(
    logits: Tensor,  # [..., C]
    variance: Tensor,  # [...]
    r: Tensor,  # [..., C], e_y - softmax(logits)
    targets: Tensor,  # [...] int64
    gamma: float,
) -> Tensor:  # [...]
    """Root in [0, gamma] of r . (softmax(z + a v r) - e_y) + a |r|^2 / gamma, which increases with a.

    Newton's step is taken only where it stays inside the bracket and is at most half the previous one: the slope is
    monotone but neither convex nor concave, and with a bracket alone Newton may cycle.
    """
    if gamma == 0.0:
        return torch.zeros_like(variance)
    norm = r.square().sum(-1)
    r_target = r.gather(-1, targets[..., None])
    low, high = torch.zeros_like(variance), torch.full_like(variance, gamma)
    a, last_move, slope = high.clone(), high.clone(), high
    converged = torch.zeros_like(a, dtype=torch.bool)
    for _ in range(_MAX_ITERATIONS):
        p = (logits + (a * variance)[..., None] * r).softmax(-1)
        gap = r - r_target  # never positive: its mean has no cancellation, even where p_y is close to one
        mean = (p * gap).sum(-1)
        slope = mean + a * norm / gamma
        steepness = variance * (p * (gap - mean[..., None]).square()).sum(-1) + norm / gamma
        low, high = torch.where(slope > 0, low, a), torch.where(slope > 0, a, high)
        newton = a - slope / steepness
        safe = (newton > low) & (newton < high) & ((newton - a).abs() <= 0.5 * last_move)
        proposal = torch.where(safe, newton, 0.5 * (low + high))
        # With a residual of zero the slope is zero everywhere: a stays, and 0 / 0 is never used. A converged row stays
        # as well, since rounding in its slope could bisect it away from the root while other rows iterate.
        converged |= (slope == 0) | slope.isnan()
        proposal = torch.where(converged, a, proposal)
        last_move = (proposal - a).abs()
        converged |= (last_move <= _TOLERANCE * a) | (high - low <= _TOLERANCE * high)
        a = proposal
        if bool(converged.all()):
            break
    return torch.where(slope.isnan(), slope, a)
