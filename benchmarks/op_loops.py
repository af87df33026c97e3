"""BADGE and BAIT as loops over their ops, for a posterior without bias and standardising."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lapal_ext import LastLayerLaplace, likelihood, ops


def badge(
    logits: Tensor,  # [N, C]
    pool: Tensor,  # [N, D]
    thresholds: Tensor,  # [count - 1], uniform
) -> Tensor:  # [count]
    p = ops.predictive(logits, None, 0.0)
    gradient = one_hot(p.argmax(1), p.shape[1]) - p
    norms = gradient.square().sum(1) * pool.square().sum(1)
    distance = torch.full_like(norms, torch.inf)
    picks = [norms.argmax()]
    for threshold in thresholds:
        last = picks[-1]
        picks.append(
            ops.badge_step_(
                pool, pool[last], norms.new_zeros(()), gradient, gradient[last], norms, norms[last], threshold, distance
            )
        )
    return torch.stack(picks)


def bait(
    posterior: LastLayerLaplace,
    pool: Tensor,  # [N, D]
    count: int,
) -> Tensor:  # [count]
    """A^-1 is the posterior's covariance less beta_t u_t u_t^T for every pick, kept as its directions u_t."""
    covariance = posterior.covariance
    s = likelihood.curvature_weight(posterior.predict_logits(pool), "categorical")
    fisher = ops.rank_n_update(torch.zeros_like(covariance), pool, s / len(pool), None)
    h = ops.predictive_variance(pool, covariance)
    q = ops.predictive_variance(pool, covariance @ fisher @ covariance)
    taken = torch.zeros(len(pool), dtype=torch.bool)
    directions, betas = covariance.new_zeros(count, len(covariance)), covariance.new_zeros(count)

    def shrunk(vector: Tensor, t: int) -> Tensor:
        """A^-1 times a vector, after t picks."""
        spent = betas[:t] * (directions[:t] @ vector)
        return covariance @ vector - spent @ directions[:t]

    zero = covariance.new_zeros(())
    u = w = covariance.new_zeros(len(covariance))
    fisher_norm = beta = zero
    picks = []
    for t in range(count):
        index, _ = ops.bait_step_(pool, u, zero, w, zero, fisher_norm, beta, s, h, q, taken)
        picks.append(index)
        u = shrunk(pool[index], t)
        beta = s[index] / (1.0 + s[index] * (pool[index] @ u))
        along = fisher @ u
        w, fisher_norm = shrunk(along, t), u @ along
        directions[t], betas[t] = u, beta
    return torch.stack(picks)
