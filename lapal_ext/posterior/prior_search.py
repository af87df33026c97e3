"""How well a prior precision fits the data, without a posterior in hand: Laplace evidence and cross-validation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext.likelihood import curvature_weight
from lapal_ext.posterior import precision as fitting
from lapal_ext.validation.tensors import check_overflow


def log_evidence(
    features: Iterator[Tensor],  # tiles [n, D], inner
    targets: Tensor,  # [N] int64
    weight: Tensor,  # [C, D]
    prior_precisions: Tensor,  # [P] float64
    curvature: str,
) -> Tensor:  # [P] float64
    """Laplace evidence of each prior precision lambda at the weights given, in float64.

    sum_n log p(y_n | W phi_n) - lambda/2 |W|^2 + C/2 sum_i (log lambda - log(lambda + e_i)), where e_i are the
    eigenvalues of the curvature Gram sum_n s_n phi_n phi_n^T, which all prior precisions share: the factors of 2 pi of
    prior and integral cancel. O(N D^2 + D^3 + P D).
    """
    mean = weight.double()
    gram = mean.new_zeros(mean.shape[1], mean.shape[1])
    log_likelihood = mean.new_zeros(())
    start = 0
    for tile in features:
        x = tile.double()
        logits = x @ mean.T
        labels = targets[start : start + len(x)]
        start += len(x)
        log_likelihood += logits.log_softmax(1).gather(1, labels[:, None]).sum()
        gram = fitting.add_observations(gram, x, curvature_weight(logits, curvature))
    check_overflow("features", gram)
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    occam = -(eigenvalues / prior_precisions[:, None]).log1p().sum(1)
    evidence: Tensor = log_likelihood - 0.5 * prior_precisions * mean.square().sum() + 0.5 * len(mean) * occam
    return evidence


def deal_folds(
    labels: Tensor,  # [N] int64
    n_folds: int,
    generator: torch.Generator | None,
) -> Tensor:  # [N] int64
    """Deal the rows to folds in random order, class by class, so that the folds have alike shares of every class."""
    device = labels.device if generator is None else generator.device
    order = torch.randperm(len(labels), generator=generator, device=device).to(labels.device)
    order = order[labels[order].sort(stable=True).indices]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels), device=labels.device) % n_folds
    return fold
