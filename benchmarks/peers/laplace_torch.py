"""laplace-torch: the predictive of a last layer, with the structures of its covariance."""

from collections.abc import Callable

import torch
from laplace import Laplace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.task import Task
from benchmarks.workloads.problems import PRIOR_PRECISION


def kron(task: Task) -> Callable[[], Tensor]:
    return _predict(task, "kron", len(task.pool) // 10)


def diag(task: Task) -> Callable[[], Tensor]:
    return _predict(task, "diag", len(task.pool))


def full(task: Task) -> Callable[[], Tensor]:
    return _predict(task, "full", len(task.pool) // 50)


def _predict(task: Task, structure: str, n_rows: int) -> Callable[[], Tensor]:
    """Probabilities of the first rows; the fit is not timed. The probit link is the mean-field one of our model."""
    n_classes, n_features = task.posterior.mean.shape
    layer = nn.Linear(n_features, n_classes, bias=False)
    layer.load_state_dict({"weight": task.posterior.mean})
    model = Laplace(
        nn.Sequential(nn.Identity(), layer),
        "classification",
        subset_of_weights="last_layer",
        hessian_structure=structure,
        prior_precision=PRIOR_PRECISION,
    )
    model.fit(DataLoader(TensorDataset(task.labelled, task.targets), batch_size=len(task.labelled)))
    rows = task.pool[:n_rows]

    def call() -> Tensor:
        with torch.no_grad():
            return torch.cat([model(tile, link_approx="probit") for tile in rows.split(100)])

    return call
