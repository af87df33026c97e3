"""The data of the workloads: features that are a class mean plus N(0, 1), and a posterior fitted to a few of them."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace

PRIOR_PRECISION = 10.0
_SPREAD = 0.2  # standard deviation of the class means in each feature: so small that classes overlap


class Problem(NamedTuple):
    """One problem, float32; its posterior has no bias and no standardising, so that every arm sees the same D."""

    posterior: LastLayerLaplace
    features: Tensor  # [n, D], what the posterior was fitted to
    targets: Tensor  # [n], every class at least once
    pool: Tensor  # [N, D]
    labels: Tensor  # [N]
    eval_features: Tensor  # [E, D]
    eval_targets: Tensor  # [E]


@functools.lru_cache(maxsize=2)
def make_problem(
    n_features: int, n_classes: int, n_pool: int = 10_000, n_eval: int = 10_000, spread: float = _SPREAD
) -> Problem:
    generator = torch.Generator().manual_seed(0)
    centres = spread * torch.randn(n_classes, n_features, generator=generator)

    def sample(labels: Tensor) -> tuple[Tensor, Tensor]:
        return centres[labels] + torch.randn(len(labels), n_features, generator=generator), labels

    features, targets = sample(torch.arange(max(100, 2 * n_classes)) % n_classes)
    pool, labels = sample(torch.randint(n_classes, (n_pool,), generator=generator))
    eval_features, eval_targets = sample(torch.randint(n_classes, (n_eval,), generator=generator))
    posterior = LastLayerLaplace.fit_map(
        features, targets, n_classes, prior_precision=PRIOR_PRECISION, fit_bias=False, standardize=False
    )
    return Problem(posterior, features, targets, pool, labels, eval_features, eval_targets)
