"""scikit-activeml: strategies of its pool module, with its defaults unless both sides must do the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import Badge, CoreSet, MaxHerding, MonteCarloEER, ProbCover, TypiClust, UncertaintySampling
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.peers.settings import NEIGHBOURS, radius, squared_bandwidth
from benchmarks.peers.task import N_CANDIDATES, N_CLASSES, N_POINTS, Task
from benchmarks.workloads.problems import PRIOR_PRECISION


def core_set(task: Task) -> Callable[[], Tensor]:
    return _query(task, lambda: CoreSet(random_state=0))


def prob_cover(task: Task) -> Callable[[], Tensor]:
    """It tries ten radii and takes the largest pure one; here the last is ours, and all of them count as pure."""
    radii = np.linspace(0.1, 1.0, 10) * radius(task)
    return _query(task, lambda: ProbCover(n_classes=N_CLASSES, deltas=radii, alpha=1e-6, random_state=0))


def typi_clust(task: Task) -> Callable[[], Tensor]:
    return _query(task, lambda: TypiClust(k=NEIGHBOURS, random_state=0))


def max_herding(task: Task) -> Callable[[], Tensor]:
    """With the bandwidth that ours chooses."""
    gamma = 1.0 / squared_bandwidth(task)
    return _query(task, lambda: MaxHerding(metric_dict={"gamma": gamma}, random_state=0))


def badge(task: Task) -> Callable[[], Tensor]:
    return _query(task, lambda: Badge(random_state=0), clf=_classifier(task), fit_clf=False)


def margin(task: Task) -> Callable[[], Tensor]:
    return _query(
        task, lambda: UncertaintySampling("margin_sampling", random_state=0), clf=_classifier(task), fit_clf=False
    )


def expected_error(task: Task) -> Callable[[], Tensor]:
    """The expected loss for each candidate, by a refit for each of its labels."""
    candidates, points = task.pool[:N_CANDIDATES], task.pool[N_CANDIDATES : N_CANDIDATES + N_POINTS].numpy()
    rows, known = _data(task._replace(pool=candidates))

    def call() -> Tensor:
        model = SklearnClassifier(
            LogisticRegression(C=1.0 / PRIOR_PRECISION, fit_intercept=False), classes=range(N_CLASSES)
        )
        strategy = MonteCarloEER("log_loss", random_state=0)
        _, utilities = strategy.query(rows, known, model, X_eval=points, return_utilities=True)
        return torch.from_numpy(utilities[0, len(task.labelled) :]) / -N_POINTS

    return call


def _query(task: Task, strategy: Callable[[], Any], **model: object) -> Callable[[], Tensor]:
    """A new strategy for each call, since ProbCover keeps the distances of its first."""
    rows, known = _data(task)

    def call() -> Tensor:
        picks = strategy().query(rows, known, **model, batch_size=task.batch_size)
        return torch.as_tensor(np.asarray(picks)) - len(task.labelled)

    return call


def _data(task: Task) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Labelled rows and pool, and the labels, NaN where they are unknown."""
    unknown = np.full(len(task.pool), np.nan)
    return np.concatenate([task.labelled.numpy(), task.pool.numpy()]), np.concatenate([task.targets.numpy(), unknown])


def _classifier(task: Task) -> SklearnClassifier:
    """A fitted classifier with the weights of our model, so that both sides have the same probabilities."""
    classifier = SklearnClassifier(LogisticRegression(fit_intercept=False), classes=range(N_CLASSES))
    classifier.fit(task.labelled.numpy(), task.targets.numpy())
    classifier.estimator_.coef_[:] = task.posterior.mean.numpy()
    return classifier
