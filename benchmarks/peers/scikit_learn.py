"""scikit-learn: logistic regression with the prior of our model as its penalty."""

from collections.abc import Callable

from torch import Tensor

from benchmarks.workloads import refit
from benchmarks.workloads.fits import FitProblem
from benchmarks.workloads.problems import PRIOR_PRECISION


def logistic_regression(problem: FitProblem) -> Callable[[], Tensor]:
    """Weights [C, D + 1]. At its own tolerance, 1e-4."""
    return lambda: refit.scikit_learn(problem.with_ones, problem.targets, PRIOR_PRECISION)
