"""The data of the comparisons: a pool, labelled rows, and a model that is fitted to them."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.workloads.problems import PRIOR_PRECISION, make_problem
from lapal_ext import LastLayerLaplace

N_FEATURES, N_CLASSES, N_LABELLED = 384, 10, 200
N_CANDIDATES, N_POINTS = 20, 1000  # of expected error reduction: the first rows of the pool, and those after them
FOLDER_OF_DATA = "LAPAL_EXT_DATA"


class Task(NamedTuple):
    """Inputs of one comparison, float32. The model has no bias and no standardising, so all arms see the same rows."""

    posterior: LastLayerLaplace
    labelled: Tensor  # [L, D]
    targets: Tensor  # [L]
    pool: Tensor  # [N, D]
    batch_size: int


class FitTask(NamedTuple):
    """Features and labels of a fit, with zero mean and one scale."""

    features: Tensor  # [n, D]
    targets: Tensor  # [n]
    n_classes: int


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


def fit_tasks(n_rows: int = 4000) -> dict[str, "functools.partial[FitTask]"]:
    """By name: the feature sets in the folder ``$LAPAL_EXT_DATA``, or else one set of Gaussian clusters."""
    folder = os.environ.get(FOLDER_OF_DATA)
    files = sorted(Path(folder).glob("*.npz")) if folder else []
    if not files:
        return {"Gaussian clusters": functools.partial(_clusters, n_rows)}
    return {file.stem: functools.partial(_from_file, file, n_rows) for file in files}


def _clusters(n_rows: int) -> FitTask:
    problem = make_problem(N_FEATURES, 77)
    return FitTask(problem.pool[:n_rows], problem.labels[:n_rows], 77)


def _from_file(file: Path, n_rows: int) -> FitTask:
    with np.load(file) as arrays:
        features, targets = arrays["x_train"][:n_rows], arrays["y_train"][:n_rows]
    x, y = torch.from_numpy(features).float(), torch.from_numpy(targets).long()
    x = x - x.mean(0)
    return FitTask(x / x.std(), y, int(y.max()) + 1)
