"""Small classification problems with a fitted posterior, for the tests of the layers above the ops."""

from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace
from tests.draws import Draw


class Problem(NamedTuple):
    """A fitted posterior, a pool with its true labels, and points to evaluate on."""

    posterior: LastLayerLaplace
    pool: Tensor  # [N, D]
    labels: Tensor  # [N]
    eval_features: Tensor  # [E, D]
    eval_targets: Tensor  # [E]


def make_problem(
    n_classes: int = 4,
    n_features: int = 12,
    n_pool: int = 60,
    dtype: torch.dtype = torch.float64,
    curvature: str = "categorical",
    seed: int = 0,
) -> Problem:
    """Overlapping class clusters, off centre and off scale, and a model fitted to a few of their points."""
    draw = Draw(seed)
    centres = 1.5 * draw.normal(n_classes, n_features)

    def sample(count: int) -> tuple[Tensor, Tensor]:
        labels = draw.integers(n_classes, count)
        return (3.0 * (centres[labels] + draw.normal(count, n_features)) + 5.0).to(dtype), labels

    features, targets = sample(4 * n_classes)
    posterior = LastLayerLaplace.fit_map(features, targets, n_classes, curvature=curvature)
    return Problem(posterior, *sample(n_pool), *sample(37))
