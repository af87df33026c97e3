"""The baseline updates, compared with their formulas sample by sample and label by label."""

import pytest
import torch

from lapal_ext import LastLayerLaplace, NotPSDError, baselines
from tests.problems import Problem, make_problem


@pytest.fixture(params=[2, 10])
def problem(request: pytest.FixtureRequest) -> Problem:
    return make_problem(n_classes=request.param)


def test_first_order_is_one_step_along_the_gradient(problem: Problem) -> None:
    x, y = problem.pool[:7], problem.labels[:7]
    inner = problem.posterior.standardization.standardized(x)
    weight = problem.posterior.mean.clone().requires_grad_()
    torch.nn.functional.cross_entropy(inner @ weight.T, y, reduction="sum").backward()
    moved = baselines.first_order(problem.posterior, x, y, 0.01)
    torch.testing.assert_close(moved.mean, problem.posterior.mean - 0.01 * weight.grad, rtol=1e-10, atol=1e-12)
    assert torch.equal(moved.covariance, problem.posterior.covariance)
    still = baselines.first_order(problem.posterior, x, y, 0.0)
    assert torch.equal(still.mean, problem.posterior.mean)
    assert still.mean.data_ptr() != problem.posterior.mean.data_ptr()
    assert moved.update(x, y).fitted


def reweighted(problem: Problem, count: int, gamma: float, n_samples: int, seed: int) -> torch.Tensor:
    posterior, generator = problem.posterior, torch.Generator().manual_seed(seed)
    x = posterior.standardization.standardized(problem.pool[:count])
    points = posterior.standardization.standardized(problem.eval_features)
    root = torch.linalg.cholesky(posterior.covariance)
    weights, results = [], []
    for _ in range(n_samples):
        noise = torch.randn(posterior.mean.shape, generator=generator, dtype=torch.float64)
        sample = posterior.mean + noise @ root.T
        p = (x @ sample.T).softmax(1)
        weights.append(torch.stack([p[n, problem.labels[n]] for n in range(count)]).prod() ** gamma if count else 1.0)
        results.append((points @ sample.T).softmax(1))
    return sum(w * p for w, p in zip(weights, results, strict=True)) / sum(weights)


@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("gamma", [0.0, 0.05, 1.0])
def test_monte_carlo_reweights_samples_of_the_weights(
    problem: Problem, count: int, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> torch.Tensor:
        return baselines.monte_carlo(
            problem.posterior,
            problem.pool[:count],
            problem.labels[:count],
            problem.eval_features,
            gamma,
            50,
            torch.Generator().manual_seed(3),
        )

    p = run()
    torch.testing.assert_close(p, reweighted(problem, count, gamma, 50, 3), rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(baselines, "_CHUNK", 2000)
    torch.testing.assert_close(run(), p, rtol=1e-12, atol=0)


def test_monte_carlo_tends_to_the_predictive_and_to_bayes() -> None:
    """With many samples: without labels the Monte Carlo link, with one label closer to the update than before."""
    problem = make_problem()
    x, y = problem.pool[:1], problem.labels[:1]

    def run(count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return baselines.monte_carlo(
            problem.posterior, x[:count], y[:count], problem.eval_features, n_samples=20_000, generator=generator
        )

    before = problem.posterior.predict_proba(problem.eval_features, "mc", 20_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(run(0), before, rtol=0, atol=0.02)
    after = problem.posterior.condition_on(x, y).predict_proba(
        problem.eval_features, "mc", 20_000, torch.Generator().manual_seed(1)
    )
    assert float((run(1) - after).norm()) < 0.7 * float((before - after).norm())


def test_weights_that_underflow_still_count() -> None:
    """A thousand labels give likelihoods far below the smallest number."""
    problem = make_problem(n_pool=1000)
    p = baselines.monte_carlo(problem.posterior, problem.pool, 3 - problem.labels, problem.eval_features, n_samples=9)
    torch.testing.assert_close(p.sum(1), torch.ones(37, dtype=torch.float64))


def test_a_covariance_without_a_cholesky_factor_raises() -> None:
    problem = make_problem()
    problem.posterior.covariance.neg_()
    with pytest.raises(NotPSDError, match=r"^covariance is not positive definite"):
        baselines.monte_carlo(problem.posterior, problem.pool[:1], problem.labels[:1], problem.eval_features)


def test_the_official_rule_is_an_update() -> None:
    """The formula of the docstring: W + gamma / (1 + v) (e_y - p) (Sigma phi)^T with s = 1."""
    problem = make_problem(curvature="gaussian")
    x, y = problem.pool[:1], problem.labels[:1]
    inner = problem.posterior.standardization.standardized(x)
    direction = inner @ problem.posterior.covariance
    gap = torch.nn.functional.one_hot(y, 4) - (inner @ problem.posterior.mean.T).softmax(1)
    step = 10.0 / (1.0 + direction @ inner.T)
    expected = problem.posterior.mean + step * gap.T @ direction
    updated = problem.posterior.condition_on(x, y, step="newton", gamma=10.0)
    torch.testing.assert_close(updated.mean, expected)
    assert isinstance(updated, LastLayerLaplace)
