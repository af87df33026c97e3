"""Feature sets for fits of the layer, and the check of what fits to them return."""

import functools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.workloads import refit
from benchmarks.workloads.problems import PRIOR_PRECISION
from lapal_ext import LastLayerLaplace
from lapal_ext.study.data import load_digits

_FOLDER = "LAPAL_EXT_DATA"
_CONVERGED = 1e-7  # tolerance
_NEAR = 1e-3  # of the converged probabilities
_ROUNDING = 1e-6  # relative, of an objective


class FitSet(NamedTuple):
    """Rows of a feature set."""

    name: str
    rows: int
    batch: int  # the last of the rows, whose labels are absorbed by updates before a refit

    def __str__(self) -> str:
        return f"{self.name} {self.rows:,}"


class FitProblem(NamedTuple):
    """Features in float32 with zero mean and one scale, so that no arm standardises them."""

    features: Tensor  # [N, D]
    with_ones: Tensor  # [N, D + 1]
    targets: Tensor  # [N], every class at least once
    num_classes: int
    updated: LastLayerLaplace  # fitted to all rows but the batch, which updates have absorbed

    def fit(self, tolerance: float | None = None) -> LastLayerLaplace:
        """Our fit from nothing, by default at its own tolerance."""
        options = {} if tolerance is None else {"tolerance": tolerance}
        return LastLayerLaplace.fit_map(
            self.features, self.targets, self.num_classes, PRIOR_PRECISION, standardize=False, **options
        )

    def refit(self) -> LastLayerLaplace:
        """Our fit begun at the mean that updates left."""
        return self.updated.refit(self.features, self.targets)

    def objective(
        self,
        weight: Tensor,  # [C, D + 1]
    ) -> float:
        """The sum of all cross-entropies and prior_precision / 2 |W|^2, bias included, in float64."""
        w = weight.double()
        loss = cross_entropy(self.with_ones.double() @ w.T, self.targets, reduction="sum")
        return float(loss + 0.5 * PRIOR_PRECISION * w.square().sum())

    def probabilities(
        self,
        weight: Tensor,  # [C, D + 1]
    ) -> Tensor:  # [N, C]
        return (self.with_ones.double() @ weight.double().T).softmax(1)


def fit_sets() -> list[FitSet]:
    """Feature sets of ``lapal_ext.study`` in the folder ``$LAPAL_EXT_DATA``; digits where it is not set."""
    if not os.environ.get(_FOLDER):
        return [FitSet("digits", 1500, 50)]
    return [
        FitSet("fashion_mnist_efflite0", 1000, 50),
        FitSet("fashion_mnist_efflite0", 8000, 100),
        FitSet("debian_sections_minilm", 5000, 100),
        FitSet("banking77_minilm", 4000, 200),
        FitSet("banking77_minilm", 10_000, 200),
        FitSet("clinc150_minilm", 1000, 150),
        FitSet("clinc150_minilm", 7500, 150),
    ]


@functools.cache
def fit_problem(chosen: FitSet) -> FitProblem:
    if chosen.name == "digits":
        features, targets = load_digits()
    else:
        with np.load(Path(os.environ[_FOLDER]) / f"{chosen.name}.npz") as arrays:
            features = torch.from_numpy(arrays["x_train"]).float()
            targets = torch.from_numpy(arrays["y_train"]).long()
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[: chosen.rows]
    x = features[order] - features[order].mean(0)
    x = x / x.std()
    classes, y = targets[order].unique(return_inverse=True)
    old = slice(0, chosen.rows - chosen.batch)
    fitted = LastLayerLaplace.fit_map(x[old], y[old], len(classes), PRIOR_PRECISION, standardize=False)
    updated = fitted.condition_on(x[old.stop :], y[old.stop :])
    return FitProblem(x, torch.cat([x, torch.ones(len(x), 1)], 1), y, len(classes), updated)


@functools.cache
def check_fits(chosen: FitSet) -> str:
    """Check our fits against the converged one and against scikit-learn's, and return what was found as a sentence."""
    problem = fit_problem(chosen)
    converged = problem.probabilities(problem.fit(_CONVERGED).mean)
    theirs = refit.scikit_learn(problem.with_ones, problem.targets, PRIOR_PRECISION)
    weights = {"fit": problem.fit().mean, "refit": problem.refit().mean, "scikit-learn": theirs}
    distances = {arm: float((problem.probabilities(weight) - converged).abs().max()) for arm, weight in weights.items()}
    most = problem.objective(theirs) * (1.0 + _ROUNDING)
    for arm in ("fit", "refit"):
        reached = problem.objective(weights[arm])
        assert reached <= most, f"{chosen}: {arm} ends at {reached}, scikit-learn at {problem.objective(theirs)}"
        assert distances[arm] <= _NEAR, f"{chosen}: {arm} is {distances[arm]:.1e} from the converged probabilities"
    return "largest distance from a converged probability: " + ", ".join(
        f"{arm} {far:.0e}" for arm, far in distances.items()
    )
