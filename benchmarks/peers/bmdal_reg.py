"""bmdal_reg: batch selection with kernels of its features."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

if not hasattr(np, "Inf"):
    np.Inf = np.inf  # noqa: NPY201 bmdal_reg 3.0.2 uses this name, which NumPy 2 has removed

from bmdal_reg.bmdal.algorithms import select_batch
from bmdal_reg.bmdal.feature_data import ListFeatureData, TensorFeatureData
from bmdal_reg.bmdal.feature_maps import IdentityFeatureMap, ProductFeatureMap
from bmdal_reg.bmdal.features import Features
from bmdal_reg.bmdal.selection import KmeansppSelectionMethod

from benchmarks.peers.task import Task, gradients
from benchmarks.workloads.problems import PRIOR_PRECISION
from lapal_ext.likelihood import curvature_weight


def max_dist(task: Task) -> Callable[[], Tensor]:
    return lambda: _select(task, task.labelled, task.pool, "maxdist", [])


def bait(task: Task) -> Callable[[], Tensor]:
    """BAIT for regression, on rows weighted by the Fisher information of our binary surrogate, given the prior."""

    def weighted(rows: Tensor) -> Tensor:
        curvature = curvature_weight(rows @ task.posterior.mean.T, "categorical")
        return rows * (curvature / PRIOR_PRECISION).sqrt()[:, None]

    def call() -> Tensor:
        condition = [("train", [1.0])]
        return _select(task, weighted(task.labelled), weighted(task.pool), "bait", condition, bait_sigma=1.0)

    return call


def kmeanspp(task: Task) -> Callable[[], Tensor]:
    """k-means++ on gradient embeddings, as the product of two kernels, so that they are never formed."""

    def call() -> Tensor:
        gradient = gradients(task)
        data = ListFeatureData([TensorFeatureData(gradient), TensorFeatureData(task.pool)])
        maps = ProductFeatureMap([IdentityFeatureMap(gradient.shape[1]), IdentityFeatureMap(task.pool.shape[1])])
        features = Features(maps, data)
        method = KmeansppSelectionMethod(features, features, sel_with_train=False, verbosity=0)
        return method.select(task.batch_size)

    return call


def _select(task: Task, labelled: Tensor, pool: Tensor, method: str, transforms: list[object], **more: float) -> Tensor:
    data = {"train": TensorFeatureData(labelled), "pool": TensorFeatureData(pool)}
    network = torch.nn.Identity()
    picks, _ = select_batch(task.batch_size, [network], data, None, "linear", transforms, method, verbosity=0, **more)
    return picks
