"""The data of the comparisons: a pool, labelled rows, and a model that is fitted to them."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads.problems import PRIOR_PRECISION, make_problem
from lapal_ext import LastLayerLaplace

N_FEATURES, N_CLASSES, N_LABELLED = 384, 10, 200
N_CANDIDATES, N_POINTS = 20, 1000  # of expected error reduction: the first rows of the pool, and those after them


class Task(NamedTuple):
    """Inputs of one comparison, float32. The model has no bias and no standardising, so all arms see the same rows."""

    posterior: LastLayerLaplace
    labelled: Tensor  # [L, D]
    targets: Tensor  # [L]
    pool: Tensor  # [N, D]
    batch_size: int


def make_task(n_pool: int = 10_000, batch_size: int = 100) -> Task:
    """200 labelled rows and a pool of overlapping classes, as in the workloads."""
    problem = make_problem(N_FEATURES, N_CLASSES)
    missing = N_LABELLED - len(problem.features)
    labelled = torch.cat([problem.features, problem.eval_features[:missing]])
    targets = torch.cat([problem.targets, problem.eval_targets[:missing]])
    posterior = LastLayerLaplace.fit_map(
        labelled, targets, N_CLASSES, prior_precision=PRIOR_PRECISION, fit_bias=False, standardize=False
    )
    return Task(posterior, labelled, targets, problem.pool[:n_pool], batch_size)


def gradients(task: Task) -> Tensor:  # [N, C]
    """The factors of the gradient embeddings of BADGE, g_n x_n^T with g = e(likeliest class) - p."""
    p = (task.pool @ task.posterior.mean.T).softmax(1)
    return torch.nn.functional.one_hot(p.argmax(1), p.shape[1]) - p
