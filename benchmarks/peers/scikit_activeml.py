"""scikit-activeml: strategies of its pool module, with its defaults unless both sides must do the same."""

from collections.abc import Callable

import numpy as np
import torch
from skactiveml.classifier import SklearnClassifier
from skactiveml.pool import Badge, CoreSet, MaxHerding, ProbCover, TypiClust, UncertaintySampling
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.peers.settings import radius, squared_bandwidth
from benchmarks.peers.task import N_CLASSES, Task

_NEIGHBOURS = 20  # of TypiClust, the paper's number; its default is 5


def core_set(task: Task) -> Callable[[], Tensor]:
    return _query(task, CoreSet(random_state=0))


def prob_cover(task: Task) -> Callable[[], Tensor]:
    """It tries ten radii and takes the largest pure one; here the last is ours, and all of them count as pure."""
    radii = np.linspace(0.1, 1.0, 10) * radius(task)
    return _query(task, ProbCover(n_classes=N_CLASSES, deltas=radii, alpha=1e-6, random_state=0))


def typi_clust(task: Task) -> Callable[[], Tensor]:
    return _query(task, TypiClust(k=_NEIGHBOURS, random_state=0))


def max_herding(task: Task) -> Callable[[], Tensor]:
    """With the bandwidth that ours chooses."""
    return _query(task, MaxHerding(metric_dict={"gamma": 1.0 / squared_bandwidth(task)}, random_state=0))


def badge(task: Task) -> Callable[[], Tensor]:
    return _query(task, Badge(random_state=0), clf=_classifier(task), fit_clf=False)


def margin(task: Task) -> Callable[[], Tensor]:
    strategy = UncertaintySampling("margin_sampling", random_state=0)
    return _query(task, strategy, clf=_classifier(task), fit_clf=False)


def _query(task: Task, strategy: object, **model: object) -> Callable[[], Tensor]:
    rows = np.concatenate([task.labelled.numpy(), task.pool.numpy()])
    known = np.concatenate([task.targets.numpy().astype(float), np.full(len(task.pool), np.nan)])

    def call() -> Tensor:
        picks = strategy.query(rows, known, **model, batch_size=task.batch_size)
        return torch.as_tensor(np.asarray(picks)) - len(task.labelled)

    return call


def _classifier(task: Task) -> SklearnClassifier:
    """A fitted classifier with the weights of our model, so that both sides have the same probabilities."""
    classifier = SklearnClassifier(LogisticRegression(fit_intercept=False), classes=range(N_CLASSES))
    classifier.fit(task.labelled.numpy(), task.targets.numpy())
    classifier.estimator_.coef_[:] = task.posterior.mean.numpy()
    return classifier
