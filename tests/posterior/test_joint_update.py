"""``update(step="joint")``: the mode for all labels together, whatever their order, and the covariance at that mode."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext import LastLayerLaplace, NotPSDError
from lapal_ext.likelihood import curvature_weight
from lapal_ext.posterior.softmax_fit import quasi_newton, trust_region
from tests.draws import Draw
from tests.problems import make_problem

NEW = slice(20, 32)


def objective(weight: Tensor, base: LastLayerLaplace, inner: Tensor, targets: Tensor, gamma: float) -> Tensor:
    away = weight - base.mean.double()
    spread = (away @ torch.linalg.inv(base.covariance.double()) * away).sum()
    return gamma * cross_entropy(inner.double() @ weight.T, targets, reduction="sum") + 0.5 * spread


@pytest.mark.parametrize("gamma", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("curvature", ["categorical", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_mode_with_the_present_posterior_as_prior(dtype: torch.dtype, curvature: str, gamma: float) -> None:
    base, pool, labels, _, _ = make_problem(dtype=dtype, curvature=curvature)
    joint = base.condition_on(pool[NEW], labels[NEW], step="joint", gamma=gamma)
    inner, weight = base.standardization.standardized(pool[NEW]), joint.mean.double().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(weight, base, inner, labels[NEW], gamma), weight)
    factor = torch.linalg.cholesky(base.covariance.double())  # in the coordinates in which the prior is spherical
    assert float((gradient @ factor).abs().max()) <= (1.1e-6 * max(gamma, 1.0) if dtype == torch.float64 else 1e-3)
    weights = curvature_weight(inner.double() @ joint.mean.double().T, curvature)
    precision = base.precision.double() + (inner.double().T * weights) @ inner.double()
    torch.testing.assert_close(joint.precision.double(), precision, rtol=1e-5, atol=1e-5)
    assert joint.drift() <= (1e-9 if dtype == torch.float64 else 1e-4)


def test_the_order_does_not_matter() -> None:
    base, pool, labels, _, _ = make_problem()
    x, y = pool[NEW], labels[NEW]
    forward, backward = (base.condition_on(*part, step="joint") for part in ((x, y), (x.flip(0), y.flip(0))))
    torch.testing.assert_close(forward.mean, backward.mean, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(forward.covariance, backward.covariance, rtol=0.0, atol=1e-6)
    one_by_one = [base.condition_on(*part) for part in ((x, y), (x.flip(0), y.flip(0)))]
    assert float((one_by_one[0].mean - one_by_one[1].mean).abs().max()) > 1e-3  # in other steps the order matters


def test_the_objective_is_below_that_of_one_label_after_another() -> None:
    base, pool, labels, _, _ = make_problem()
    inner = base.standardization.standardized(pool[NEW])
    values = {
        step: float(objective(base.condition_on(pool[NEW], labels[NEW], step=step).mean, base, inner, labels[NEW], 1.0))
        for step in ("joint", "line_search", "newton")
    }
    assert values["joint"] < min(values["line_search"], values["newton"]) - 1e-3


def test_from_the_prior_it_is_the_fit(draw: Draw) -> None:
    x, y = draw.normal(40, 6), draw.integers(3, 40)
    prior = LastLayerLaplace(torch.zeros(3, 6, dtype=torch.float64), prior_precision=2.0).fit(x[:0])
    fitted = LastLayerLaplace.fit_map(x, y, 3, 2.0, fit_bias=False, standardize=False, tolerance=0.0)
    joint = prior.update(x, y, step="joint")
    torch.testing.assert_close(joint.mean, fitted.mean, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(joint.covariance, fitted.covariance, rtol=0.0, atol=1e-6)


def test_more_rows_than_features_and_rows_that_repeat() -> None:
    base, pool, labels, _, _ = make_problem()
    rows = torch.arange(len(pool)).repeat(3)
    joint = base.condition_on(pool[rows], labels[rows], step="joint")
    threefold = base.condition_on(pool, labels, step="joint", gamma=3.0)  # gamma affects the mean alone
    torch.testing.assert_close(joint.mean, threefold.mean, rtol=0.0, atol=1e-5)
    assert float(joint.covariance.trace()) < float(threefold.covariance.trace())


@pytest.mark.parametrize(("rows", "gamma"), [(slice(0), 1.0), (NEW, 0.0)])
def test_where_no_label_moves_the_mean_all_steps_are_the_same(rows: slice, gamma: float) -> None:
    base, pool, labels, _, _ = make_problem()
    joint, other = (base.condition_on(pool[rows], labels[rows], step=step, gamma=gamma) for step in ("joint", "newton"))
    for ours, theirs in zip(joint.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)


def test_other_updates_may_follow() -> None:
    base, pool, labels, points, _ = make_problem()
    joint = base.condition_on(pool[NEW], labels[NEW], step="joint")
    then = joint.condition_on(pool[40:45], labels[40:45])
    assert not torch.equal(then.mean, joint.mean)
    assert bool(then.predict_proba(points).isfinite().all())
    assert then.drift() <= 1e-9


@pytest.mark.parametrize(
    ("broken", "error", "words"),
    [
        (lambda model: model.covariance.neg_(), NotPSDError, "covariance is not positive definite"),
        (lambda model: model.covariance.fill_(torch.nan), NotPSDError, "covariance is not positive definite"),
        (lambda model: model.mean.fill_(torch.nan), ValueError, "features"),
        (lambda model: model.precision.fill_(torch.nan), ValueError, "NaN in the posterior"),
    ],
)
def test_a_broken_posterior_stays_as_it_is(broken, error: type[Exception], words: str) -> None:
    base, pool, labels, _, _ = make_problem()
    broken(base)
    before = [buffer.clone() for buffer in base.buffers()]
    with pytest.raises(error, match=words):
        base.update(pool[NEW], labels[NEW], step="joint")
    for buffer, old in zip(base.buffers(), before, strict=True):
        torch.testing.assert_close(buffer, old, rtol=0.0, atol=0.0, equal_nan=True)


def test_an_update_that_is_stopped_warns_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    base, pool, labels, _, _ = make_problem()
    monkeypatch.setattr(quasi_newton, "_MOST_ITERATIONS", 1)
    monkeypatch.setattr(trust_region, "_MOST_STEPS", 1)
    with pytest.warns(RuntimeWarning, match="update stopped with a gradient of") as caught:
        base.update(pool[NEW], labels[NEW], step="joint")
    assert caught[0].filename == __file__


@pytest.mark.parametrize("step", ["line_search", "newton", "joint"])
@pytest.mark.parametrize("per_row", [False, True])
def test_a_trust_that_the_dtype_cannot_hold_is_refused(step: str, per_row: bool) -> None:
    base, pool, labels, _, _ = make_problem(dtype=torch.float32)
    gamma = torch.tensor([1.0, 1e300], dtype=torch.float64) if per_row else 1e300
    before = base.clone()
    with pytest.raises(ValueError, match=r"^gamma must "):
        base.update(pool[:2], labels[:2], step=step, gamma=gamma)
    assert torch.equal(base.mean, before.mean)
    assert torch.equal(base.covariance, before.covariance)


def test_a_list_of_trust_is_refused_with_what_to_write() -> None:
    base, pool, labels, _, _ = make_problem()
    with pytest.raises(TypeError, match=r"^gamma must be a number, got list: pass torch\.tensor"):
        base.update(pool[:2], labels[:2], gamma=[1.0, 2.0])


def test_an_unknown_step_is_refused() -> None:
    base, pool, labels, _, _ = make_problem()
    with pytest.raises(ValueError, match="step must be one of 'line_search', 'newton', 'joint', got 'best'"):
        base.update(pool[:1], labels[:1], step="best")
