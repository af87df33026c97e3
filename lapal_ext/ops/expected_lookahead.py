"""Expected loss after one more label: for every candidate, over all its possible labels at once."""

import torch
from torch import Tensor

from lapal_ext.losses import EXPECTED_LOSSES
from lapal_ext.ops.declare import define

_TILE = 1 << 21  # elements of the largest temporary, 8 MiB in float32


@define(
    shapes={"logits": "[C, E]", "columns": "[N, E]", "step_lengths": "[N]", "probabilities": "[N, C]"},
    returns=("float64 [N]",),
    choices={"loss_kind": EXPECTED_LOSSES},
)
def expected_lookahead(
    logits: Tensor,  # [C, E]
    columns: Tensor,  # [N, E]
    step_lengths: Tensor,  # [N]
    probabilities: Tensor,  # [N, C]
    loss_kind: str,
) -> Tensor:  # [N]
    """Sum over E points of sum_k p_k loss(softmax(logits after label k)), for every candidate.

    With the Newton step, label k moves an evaluation point's logits by delta (e_k - p), delta = a c_e: the labels share
    t = logits - delta p and differ in class k alone. So one pass of exponentials serves all C labels, O(N E C) rather
    than O(N E C^2).

    Leave class k out of the softmax of t. If k is not the winner of t, the remaining sum is relative to the winner,
    whose exponential is one; if it is, the sum is relative to the runner-up. Class k is then added with d = t_k + delta
    - (largest remaining). Every exponential is at most one, for any delta.

    Args:
        logits: of the evaluation points, [C, E].
        columns: Phi Sigma Phi_eval^T of the candidates, [N, E].
        step_lengths: Newton step a of each candidate, the same for all its labels, [N].
        probabilities: predictive of each candidate, [N, C].
        loss_kind: ``expected_cross_entropy`` or ``expected_zero_one``.

    Returns:
        float64 [N]; the caller may add the sums of tiles of E.
    """
    n_classes, n_eval = logits.shape
    n_candidates = columns.shape[0]
    sums = logits.new_zeros(n_candidates, dtype=torch.float64)
    rows = max(1, _TILE // max(1, n_classes * n_eval))
    for start in range(0, n_candidates, rows):
        tile = slice(start, start + rows)
        delta = step_lengths[tile, None] * columns[tile]  # [m, E]
        p = probabilities[tile, None, :]  # [m, 1, C]
        losses = _loss_of_each_label(logits.mT - delta[:, :, None] * p, delta, loss_kind)
        sums[tile] = (losses * p).sum((1, 2), dtype=torch.float64)
    return sums


def _loss_of_each_label(t: Tensor, delta: Tensor, loss_kind: str) -> Tensor:
    """Loss of softmax(t + delta e_k) for every k: t [m, E, C], delta [m, E] -> [m, E, C]."""
    if t.shape[-1] == 1:
        return torch.zeros_like(t)
    (first, second), (winner, runner_up) = (pair.unbind(-1) for pair in t.topk(2, dim=-1))
    gap = (first - second)[..., None]
    is_winner = torch.zeros_like(t, dtype=torch.bool).scatter(-1, winner[..., None], True)
    below = second[..., None] - t  # of the other classes, >= 0
    weight = (-below).masked_fill(is_winner, -torch.inf).exp()  # of the other classes, relative to the runner-up
    energy = (weight * below).masked_fill(is_winner, 0.0)
    total, total_energy = weight.sum(-1, keepdim=True), energy.sum(-1, keepdim=True)
    beyond_top_two = weight.scatter(-1, runner_up[..., None], 0.0).sum(-1, keepdim=True)

    # For the classes other than k, relative to the largest of them: the sum of the exponentials without that of the
    # largest (one), and the sum of each exponential times its distance from the largest.
    shrink = (-gap).exp()
    remaining = torch.where(is_winner, beyond_top_two, shrink * (total - weight))
    remaining_energy = torch.where(is_winner, total_energy, shrink * (total_energy - energy + gap * (total - weight)))
    d = t + delta[..., None] - torch.where(is_winner, second[..., None], first[..., None])
    grown = (-d.abs()).exp()
    leads = d > 0  # class k wins after its own label
    rest = torch.where(leads, grown * (1.0 + remaining), remaining + grown)
    if loss_kind == "expected_zero_one":
        return rest / (1.0 + rest)
    if loss_kind != "expected_cross_entropy":
        raise ValueError(f"loss_kind must be one of {EXPECTED_LOSSES}, got {loss_kind!r}")
    distance = torch.where(leads, grown * (remaining_energy + d * (1.0 + remaining)), remaining_energy - grown * d)
    return rest.log1p() + distance / (1.0 + rest)
