"""The prior precision: evidence against dense determinants, cross-validation against plain loops."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace
from lapal_ext.likelihood import CURVATURES
from lapal_ext.posterior import prior_search as evidence
from tests.fuzz.processes import HANGS
from tests.problems import make_problem


def evidence_by_definition(model: LastLayerLaplace, x: Tensor, y: Tensor, prior: float) -> float:
    """log p(y | W) + log p(W | lambda) + log of the Gaussian integral, over all C D weights at once."""
    mean = model.mean.double()
    n_classes, n_features = mean.shape
    inner = model.standardization.standardized(x).double()
    log_p = (inner @ mean.T).log_softmax(1)
    top = log_p.exp().amax(1)
    s = top * (1 - top) if model.curvature == "categorical" else torch.ones_like(top)
    size = n_classes * n_features
    hessian = prior * torch.eye(size, dtype=torch.float64)
    for phi, weight in zip(inner, s, strict=True):
        hessian += torch.kron(torch.eye(n_classes, dtype=torch.float64), weight * torch.outer(phi, phi))
    log_prior = 0.5 * size * math.log(prior / (2 * math.pi)) - 0.5 * prior * float(mean.square().sum())
    log_integral = 0.5 * size * math.log(2 * math.pi) - 0.5 * float(torch.linalg.slogdet(hessian).logabsdet)
    return float(log_p.gather(1, y[:, None]).sum()) + log_prior + log_integral


@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("n_rows", [0, 5, 37])
def test_evidence_is_the_dense_laplace_integral(n_classes: int, curvature: str, n_rows: int) -> None:
    problem = make_problem(n_classes=n_classes, curvature=curvature)
    x, y = problem.eval_features[:n_rows], problem.eval_targets[:n_rows]
    grid = torch.tensor([1e-3, 1.0, 10.0, 1e4], dtype=torch.float64)
    values = problem.posterior.log_marginal_likelihood(x, y, grid)
    expected = [evidence_by_definition(problem.posterior, x, y, prior) for prior in grid.tolist()]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_evidence_has_the_shape_of_the_prior_precisions(dtype: torch.dtype) -> None:
    problem = make_problem(dtype=dtype)
    x, y = problem.eval_features, problem.eval_targets
    own = problem.posterior.log_marginal_likelihood(x, y)
    assert own.shape == ()
    assert own.dtype == dtype
    grid = torch.tensor([[problem.posterior.prior_precision, 3.0]])
    several = problem.posterior.log_marginal_likelihood(x, y, grid)
    assert several.shape == (1, 2)
    torch.testing.assert_close(several[0, 0], own)
    assert problem.posterior.log_marginal_likelihood(x, y, grid[:, :0]).shape == (1, 0)


def test_evidence_does_not_depend_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    x, y = problem.eval_features, problem.eval_targets
    whole = problem.posterior.log_marginal_likelihood(x, y)
    monkeypatch.setattr("lapal_ext.tiles.TILE_ROWS", 5)
    torch.testing.assert_close(problem.posterior.log_marginal_likelihood(x, y), whole, rtol=1e-12, atol=0)


def cross_validated(x: Tensor, y: Tensor, fold: Tensor, prior: float, **options: bool) -> float:
    score = 0.0
    for number in fold.unique():
        rest = fold != number
        model = LastLayerLaplace.fit_map(x[rest], y[rest], 4, prior, **options)
        p = model.predict_proba(x[~rest], "plugin")
        score -= float(p.gather(1, y[~rest, None]).log().sum())
    return score


@pytest.mark.parametrize("options", [{}, {"fit_bias": False}, {"standardize": False}], ids=str)
def test_the_best_prior_precision_is_that_of_the_plain_loop(options: dict[str, bool]) -> None:
    problem = make_problem()
    x, y = problem.eval_features, problem.eval_targets.clone()
    y[::3] = 3 - y[::3]  # wrong labels, to which a weak prior overfits
    grid = torch.tensor([30.0, 0.3, 3.0, 3000.0])
    fold = evidence.assign_folds(y, 4, torch.Generator().manual_seed(5))
    scores = [cross_validated(x, y, fold, prior, **options) for prior in grid.tolist()]
    best = LastLayerLaplace.optimize_prior_precision(
        x, y, 4, grid, 4, generator=torch.Generator().manual_seed(5), **options
    )
    assert isinstance(best, float)
    assert best == float(grid[scores.index(min(scores))])
    assert best in (3.0, 30.0)


def test_the_default_grid_and_folds() -> None:
    problem = make_problem()
    x, y = problem.eval_features, problem.eval_targets
    values = [
        LastLayerLaplace.optimize_prior_precision(x, y, 4, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0)
    ]
    assert values[0] == values[1]
    assert round(2 * math.log10(values[0]), 6) in range(-4, 7)
    scaled = LastLayerLaplace.optimize_prior_precision(1e3 * x, y, 4, generator=torch.Generator().manual_seed(0))
    assert scaled == values[0]


def test_every_class_is_spread_over_the_folds() -> None:
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 3)
    fold = evidence.assign_folds(labels, 5, torch.Generator().manual_seed(0))
    assert fold[:10].bincount().tolist() == [2] * 5
    assert fold[10:15].bincount().tolist() == [1] * 5
    assert int(fold[15:].unique().numel()) == 3
    others = evidence.assign_folds(labels, 5, torch.Generator().manual_seed(1))
    assert not torch.equal(fold, others)


def test_the_evidence_over_regularises() -> None:
    """As the docstring warns: at the best fit by cross-validation, it prefers a larger prior precision."""
    problem = make_problem(n_classes=10, n_pool=200)
    x, y = problem.pool, problem.labels
    best = LastLayerLaplace.optimize_prior_precision(x, y, 10, generator=torch.Generator().manual_seed(0))
    grid = torch.logspace(-2, 3, 11)
    values = LastLayerLaplace.fit_map(x, y, 10, best).log_marginal_likelihood(x, y, grid)
    assert float(grid[values.argmax()]) > best


def test_an_evidence_that_overflows_in_float32_raises() -> None:
    model = LastLayerLaplace(torch.full((2, 3), 1e19)).fit(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"^features must give results that are finite in torch\.float32"):
        model.log_marginal_likelihood(torch.eye(3), torch.tensor([0, 1, 0]), torch.tensor([1.0, 1e3]))


_RELEASED = """
import gc, weakref
import torch
from lapal_ext import LastLayerLaplace
from tests.fuzz.processes import HANGS

gc.disable()
features = torch.eye(6)
kept = weakref.ref(features)
def caller(features):
    LastLayerLaplace.fit_map(features, torch.arange(6) % 2, 2)
caller(features)
del features
assert kept() is None
"""


def test_the_first_fit_of_a_process_keeps_no_reference_to_its_features() -> None:
    subprocess.run([sys.executable, "-c", _RELEASED], check=True, timeout=HANGS)


@pytest.mark.parametrize("fit_bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_untrained_is_the_prior_standardised_by_the_pool(fit_bias: bool, standardize: bool) -> None:
    problem = make_problem()
    model = LastLayerLaplace.untrained(
        problem.pool, 4, 5.0, "gaussian", fit_bias, standardize, class_names=["a", "b", "c", "d"]
    )
    fitted = LastLayerLaplace.fit_map(
        problem.pool, problem.labels, 4, 5.0, "gaussian", fit_bias=fit_bias, standardize=standardize
    )
    assert torch.equal(model.centre, fitted.centre)
    assert torch.equal(model.scale, fitted.scale)
    assert model.mean.shape == fitted.mean.shape
    assert not model.mean.any()
    torch.testing.assert_close(model.covariance, torch.eye(len(model.covariance), dtype=torch.float64) / 5.0)
    assert model.class_names == ("a", "b", "c", "d")
    assert (model.predict_proba(problem.pool) == 0.25).all()
