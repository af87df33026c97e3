"""The workload W9: fits of the layer to all labels, from nothing and begun at the mean that updates left.

Before anything is timed, both must end no higher than scikit-learn does on the same objective, and near the converged
probabilities.
"""

import pytest

from benchmarks.harness.workload import ONE_THREAD, TimeWorkload, public_call
from benchmarks.workloads import refit
from benchmarks.workloads.fits import FitSet, check_fits, fit_problem, fit_sets
from benchmarks.workloads.problems import PRIOR_PRECISION

_PEERS = ("scikit-learn", "same objective", "same start")
_ARMS = (*_PEERS, "torch", "native", ONE_THREAD)
_TARGETS = {"fit": {"scikit-learn": 2.5}, "refit": {"scikit-learn": 8.0}}
_LARGE, _FEW = 2000, 3  # rows, from which on an arm takes seconds, and rounds of such an arm


@pytest.mark.parametrize(
    ("kind", "arm"),
    [(kind, arm) for kind in _TARGETS for arm in _ARMS if arm != "same start" or kind == "refit"],
)
@pytest.mark.parametrize("chosen", fit_sets(), ids=lambda chosen: f"{chosen.name}-{chosen.rows}")
def bench_w9_fit(time_workload: TimeWorkload, chosen: FitSet, kind: str) -> None:
    """The whole call: the fit and, in our arms, the covariance."""
    problem = fit_problem(chosen)
    ours = problem.fit if kind == "fit" else problem.refit
    x, ones, y, start = problem.features, problem.with_ones, problem.targets, problem.updated.mean
    time_workload(
        f"W9 {kind}, {chosen} rows",
        f"{x.shape[1]}/{problem.num_classes}",
        units=len(x),
        arms={
            "scikit-learn": lambda _: lambda: refit.scikit_learn(x, y, PRIOR_PRECISION, fit_intercept=True),
            "same objective": lambda _: lambda: refit.scikit_learn(ones, y, PRIOR_PRECISION),
            "same start": lambda _: lambda: refit.scikit_learn(ones, y, PRIOR_PRECISION, start=start),
            **public_call(lambda _: lambda: ours().mean),
        },
        targets=_TARGETS[kind],
        # The weights are not compared: arms that end at a tolerance differ by more than rounding.
        incomparable={*_PEERS, "torch", ONE_THREAD},
        rounds=dict.fromkeys(_ARMS, _FEW) if len(x) > _LARGE else {},
        note=check_fits(chosen),
    )
