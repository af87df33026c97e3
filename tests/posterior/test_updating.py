"""Absorbing labels: compared with dense precision algebra, however the labels are grouped."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, NotPSDError
from lapal_ext.likelihood import CURVATURES, STEPS
from lapal_ext.posterior import precision as fitting
from lapal_ext.posterior.last_layer_laplace import UPDATE_STEPS
from tests.draws import Draw
from tests.ops.dense_posterior import DensePosterior

NO_ROWS, NO_LABELS = torch.zeros(0, 6, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
Copy = Callable[[LastLayerLaplace], LastLayerLaplace]

# Bounds on the relative errors of mean, covariance and precision.
LIMITS = {(torch.float64, "any"): 1e-11, (torch.float32, "bayes"): 2e-5, (torch.float32, "bold"): 2e-4}


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def dense_update(posterior: LastLayerLaplace, x: Tensor, y: Tensor, step: str, gamma: float) -> DensePosterior:
    dense = DensePosterior(posterior.mean, posterior.covariance)
    for phi, label in zip(x, y, strict=True):
        dense.absorb(phi, int(label), gamma, step, posterior.curvature)
    return dense


def make_posterior(
    draw: Draw, n_classes: int, n_features: int, curvature: str, dtype: torch.dtype = torch.float64
) -> LastLayerLaplace:
    weight, features = draw.normal(n_classes, n_features), draw.normal(3 * n_features, n_features)
    return LastLayerLaplace(weight.to(dtype), curvature=curvature).fit(features.to(dtype))


def chaotic(curvature: str, step: str, gamma: float) -> bool:
    """Whether rounding grows without bound, so that float32 has no budget: each step overshoots the last."""
    return (curvature, step) == ("categorical", "newton") and gamma > 1


@pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 9), (10, 24), (150, 17)])
def test_update_equals_dense_algebra(n_classes: int, n_features: int, curvature: str, step: str, gamma: float) -> None:
    initial = make_posterior(Draw(1), n_classes, n_features, curvature)
    draw = Draw(2)
    x, y = draw.normal(23, n_features), draw.integers(n_classes, 23)
    dense = dense_update(initial, x, y, step, gamma)
    dtypes = (torch.float64,) if chaotic(curvature, step, gamma) else (torch.float64, torch.float32)
    for dtype in dtypes:
        limit = LIMITS[dtype, "any" if dtype == torch.float64 else "bayes" if gamma <= 1 else "bold"]
        for group in (1, 4, 23):
            posterior = make_posterior(Draw(1), n_classes, n_features, curvature, dtype)
            for start in range(0, 23, group):
                rows = slice(start, start + group)
                assert posterior.update(x[rows].to(dtype), y[rows], step, gamma) is posterior
            assert relative_error(posterior.mean, dense.mean) <= limit
            assert relative_error(posterior.covariance, dense.covariance) <= limit
            assert relative_error(posterior.precision, dense.precision) <= limit
            assert torch.equal(posterior.covariance, posterior.covariance.T)
            assert torch.equal(posterior.precision, posterior.precision.T)


def test_more_labels_than_a_block_holds(draw: Draw) -> None:
    posterior = make_posterior(draw, 3, 6, "categorical")
    x, y = draw.normal(600, 6), draw.integers(3, 600)
    one_by_one = posterior.clone()
    for row in range(600):
        one_by_one.update(x[row : row + 1], y[row : row + 1])
    posterior.update(x, y)
    assert relative_error(posterior.mean, one_by_one.mean) < 1e-11
    assert relative_error(posterior.covariance, one_by_one.covariance) < 1e-11
    assert relative_error(posterior.precision @ posterior.covariance, torch.eye(6).double()) < 1e-11


def test_no_rows_change_nothing(draw: Draw) -> None:
    posterior = make_posterior(draw, 3, 6, "categorical")
    before = posterior.clone()
    posterior.update(draw.normal(0, 6), draw.integers(3, 0))
    assert all(torch.equal(a, b) for a, b in zip(posterior.buffers(), before.buffers(), strict=True))


def test_gamma_zero_moves_the_covariance_alone(draw: Draw) -> None:
    posterior = make_posterior(draw, 3, 6, "categorical")
    before = posterior.clone()
    posterior.update(draw.normal(5, 6), draw.integers(3, 5), gamma=0.0)
    assert torch.equal(posterior.mean, before.mean)
    assert posterior.covariance.trace() < before.covariance.trace()


def test_condition_on_leaves_the_posterior_alone(draw: Draw) -> None:
    posterior = make_posterior(draw, 3, 6, "categorical")
    x, y = draw.normal(5, 6), draw.integers(3, 5)
    before = posterior.clone()
    after = posterior.condition_on(x, y)
    assert all(torch.equal(a, b) for a, b in zip(posterior.buffers(), before.buffers(), strict=True))
    assert torch.equal(after.mean, posterior.clone().update(x, y).mean)
    theirs = {buffer.data_ptr() for buffer in posterior.buffers()}
    assert theirs.isdisjoint(buffer.data_ptr() for buffer in after.buffers())


def test_updates_add_to_the_precision_when_it_is_read(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then at most as many rows are pending as the posterior has columns."""
    posterior, products = make_posterior(draw, 3, 6, "categorical"), []
    every_time = posterior.clone()
    add = fitting.add_observations
    monkeypatch.setattr(fitting, "add_observations", lambda *args: products.append(len(args[1])) or add(*args))
    for _ in range(3):
        x, y = draw.normal(2, 6), draw.integers(3, 2)
        posterior = posterior.update(x, y).condition_on(x[:0], y[:0])
        assert every_time.update(x, y).precision.isfinite().all()
        assert products.pop() == 2
        assert not products
    torch.testing.assert_close(posterior.precision, every_time.precision)
    assert products == [6]
    posterior.update(draw.normal(7, 6), draw.integers(3, 7))
    assert products == [6, 7]


@pytest.mark.parametrize("step", UPDATE_STEPS)
def test_a_posterior_and_an_update_of_it_do_not_change_each_other(draw: Draw, step: str) -> None:
    """They share a matrix until the precision of the new one is read."""
    posterior, another = (make_posterior(draw, 3, 6, "categorical") for _ in range(2))
    x, y = draw.normal(5, 6), draw.integers(3, 5)
    first, second = posterior.clone().state_dict(), another.state_dict()
    expected = posterior.clone().update(x, y, step).state_dict()
    after, replaced = (posterior.condition_on(x, y, step) for _ in range(2))
    replaced.load_state_dict(second)
    assert_equal_states(posterior.state_dict(), first)
    posterior.load_state_dict(second)
    assert_equal_states(after.state_dict(), expected)
    calls: list[object] = []
    after.register_forward_hook(lambda *arguments: calls.append(arguments))
    posterior(x)
    assert not calls


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize(
    "copied",
    [LastLayerLaplace.clone, lambda posterior: posterior.condition_on(NO_ROWS, NO_LABELS)],
    ids=["clone", "condition_on"],
)
def test_another_thread_may_read_the_precision_during_a_copy(draw: Draw, moment: str, copied: Copy) -> None:
    """The read adds pending rows to it, here just before and just after the buffers are copied."""
    posterior = make_posterior(draw, 3, 6, "categorical").update(draw.normal(2, 6), draw.integers(3, 2))
    expected = posterior.clone().precision

    class Watched(dict[str, Tensor]):
        def copy(self) -> dict[str, Tensor]:
            buffers = super().copy()
            assert posterior.precision.shape == (6, 6)
            return super().copy() if moment == "before" else buffers

    posterior.__dict__["_buffers"] = Watched(posterior.__dict__["_buffers"])
    torch.testing.assert_close(copied(posterior).precision, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(posterior.precision, expected, rtol=1e-14, atol=0)


def assert_equal_states(state: Mapping[str, object], expected: Mapping[str, object]) -> None:
    assert state.keys() == expected.keys()
    for name, value in state.items():
        same = torch.equal(value, expected[name]) if isinstance(value, Tensor) else value == expected[name]
        assert same, name


@pytest.mark.parametrize("one_gamma", [False, True])
@pytest.mark.parametrize("bad_row", [0, 3, 280], ids=["single", "in a block", "in the second block"])
def test_a_failed_update_changes_nothing(draw: Draw, bad_row: int, one_gamma: bool) -> None:
    posterior = make_posterior(draw, 3, 6, "gaussian")
    posterior.covariance[5, :] = posterior.covariance[:, 5] = 0.0
    posterior.covariance[5, 5] = -0.5
    x, y = draw.normal(bad_row + 1, 6), draw.integers(3, bad_row + 1)
    x[:, 5] = 0.0
    x[bad_row] = torch.tensor([0.0, 0, 0, 0, 0, 2])
    gamma = 1.0 if one_gamma else torch.linspace(0.5, 1.0, bad_row + 1, dtype=x.dtype)
    before = posterior.clone()
    with pytest.raises(NotPSDError, match=rf"along row {bad_row} of features"):
        posterior.update(x, y, gamma=gamma)
    assert torch.equal(posterior.precision, before.precision)
    assert all(torch.equal(a, b) for a, b in zip(posterior.buffers(), before.buffers(), strict=True))


def test_line_search_never_overshoots_where_newton_does() -> None:
    """A confidently wrong model: s vanishes, so Newton steps by gamma along a long direction."""
    weight = torch.tensor([[30.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    posterior = LastLayerLaplace(weight).fit(torch.zeros(0, 2, dtype=torch.float64))
    x, y = torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    newton = posterior.condition_on(x, y, step="newton").predict_logits(x)[0]
    searched = posterior.condition_on(x, y, step="line_search").predict_logits(x)[0]
    before = posterior.predict_logits(x)[0]
    objective = []
    for logits in (before, newton, searched):
        moved = (logits - before)[1] / 9.0  # |W' - W|^2 / 2 in the metric of the prior, r = (-1, 1)
        objective.append(float(torch.logsumexp(logits, 0) - logits[1] + 9.0 * moved**2))
    assert objective[2] < objective[0]
    assert objective[2] <= objective[1]


def test_drift_is_small_and_refresh_removes_it(draw: Draw) -> None:
    posterior = make_posterior(draw, 5, 48, "categorical", torch.float32)
    x, y = draw.normal(2000, 48).float(), draw.integers(5, 2000)
    for row in range(1000):
        posterior.update(x[row : row + 1], y[row : row + 1])
    posterior.update(x[1000:], y[1000:])
    assert 0 < posterior.drift() < 1e-3
    assert posterior.refresh() is posterior
    assert posterior.drift() < 1e-6


@pytest.mark.slow
def test_ten_thousand_updates_in_float32(draw: Draw) -> None:
    posterior = make_posterior(draw, 10, 384, "categorical", torch.float32)
    x, y = draw.normal(10_000, 384).float(), draw.integers(10, 10_000)
    start = posterior.predict_latent(x).variance
    for row in range(10_000):
        posterior.update(x[row : row + 1], y[row : row + 1])
    assert posterior.drift() <= 1e-3
    floor = -64 * torch.finfo(torch.float32).eps * start
    assert bool((posterior.predict_latent(x).variance >= floor).all())
    assert posterior.refresh().drift() <= 1e-6
