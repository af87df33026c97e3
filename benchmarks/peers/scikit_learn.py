"""scikit-learn: logistic regression with the prior of our model as its penalty."""

from collections.abc import Callable

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.peers.task import FitTask
from benchmarks.workloads.problems import PRIOR_PRECISION

_ENOUGH = 10_000  # iterations: its default of 100 may end earlier


def logistic_regression(task: FitTask) -> Callable[[], Tensor]:
    """Weights [C, D]. At its own tolerance, 1e-4."""
    features, targets = task.features.numpy(), task.targets.numpy()

    def call() -> Tensor:
        model = LogisticRegression(C=1.0 / PRIOR_PRECISION, fit_intercept=False, max_iter=_ENOUGH)
        return torch.from_numpy(model.fit(features, targets).coef_)

    return call
