"""The fit of the layer itself: the gradient vanishes, whatever the features, and a warning says so if it does not."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext import LastLayerLaplace, ops
from lapal_ext.ops import use_references
from lapal_ext.posterior.map_fit import TOLERANCE, map_weights
from lapal_ext.posterior.softmax_fit import quasi_newton, trust_region
from tests.draws import Draw


def gradient(weight: Tensor, features: Tensor, targets: Tensor, prior_precision: float) -> Tensor:
    weight = weight.clone().requires_grad_()
    loss = cross_entropy(features @ weight.T, targets, reduction="sum")
    (loss + 0.5 * prior_precision * weight.square().sum()).backward()
    return weight.grad


def nearly_equal_columns(draw: Draw) -> Tensor:
    """Columns that are too similar for steps in float32."""
    return draw.normal(60, 1) + 1e-5 * draw.normal(60, 8)


FEATURES = {
    "normal": lambda draw: draw.normal(60, 8),
    "one row": lambda draw: draw.normal(1, 8),
    "as many as rows": lambda draw: draw.normal(60, 60),
    "far from zero": lambda draw: draw.normal(60, 8) + 10.0,
    "of several sizes": lambda draw: draw.normal(60, 8) * 2.0 ** torch.arange(-4.0, 4.0).double(),
    "nearly equal columns": nearly_equal_columns,
    "zero": lambda draw: 0.0 * draw.normal(60, 8),
}


@pytest.mark.parametrize("prior_precision", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("n_classes", [2, 5, 40])
@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("separable", [False, True])
def test_the_gradient_vanishes(kind: str, n_classes: int, prior_precision: float, separable: bool, draw: Draw) -> None:
    x = FEATURES[kind](draw)
    y = x[:, :n_classes].argmax(1) if separable else draw.integers(n_classes, len(x))
    fit = map_weights(x, y, n_classes, prior_precision)
    assert fit.warning_text("it") == ""
    weight = fit.weight
    assert weight.shape == (n_classes, x.shape[1])
    assert float(gradient(weight, x, y, prior_precision).abs().max()) <= 1.01e-5
    assert float(weight.sum(0).abs().max()) <= 1e-5 * float(weight.abs().max())  # the rows of a minimum sum to zero


@pytest.mark.parametrize("replaced", [False, True], ids=["native", "reference"])
def test_a_prior_that_is_no_more_than_rounding(replaced: bool, draw: Draw) -> None:
    """Along some directions it is the only curvature: a step along these could leave nothing else of the weights."""
    choose = np.random.default_rng(6)
    with use_references() if replaced else nullcontext():
        for _ in range(12):
            n_rows, n_features, n_classes = (int(choose.integers(low, low + 3)) for low in (1, 1, 2))
            x = draw.normal(n_rows, n_features) * 10.0 ** choose.integers(-3, 4)
            y, prior_precision = draw.integers(n_classes, n_rows), 10.0 ** -choose.uniform(10, 300)
            fit = map_weights(x, y, n_classes, prior_precision, tolerance=TOLERANCE)
            weight, size = fit.weight, float(x.abs().max())
            assert weight.isfinite().all()
            assert float(weight.sum(0).abs().max()) <= 1e-10 * float(weight.abs().max())
            if fit.converged:
                assert float(gradient(weight, x, y, prior_precision).abs().max()) <= 10.0 * TOLERANCE * n_rows * size


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e3, 1e6])
def test_the_size_of_the_features_does_not_matter(factor: float, draw: Draw) -> None:
    """Nor do steps in float32 overflow. The prior scales with the square, the tolerance of the gradient does not."""
    x, y = draw.normal(60, 8), draw.integers(4, 60)
    weight = map_weights(factor * x, y, 4, factor**2).weight
    if factor < 1:
        assert float(gradient(weight, factor * x, y, factor**2).abs().max()) <= 1e-6
    else:
        torch.testing.assert_close(factor * weight, map_weights(x, y, 4, 1.0).weight, rtol=1e-5, atol=1e-7)


def test_the_same_minimum_as_scikit_learn(draw: Draw) -> None:
    x, y = draw.normal(300, 20), draw.integers(7, 300)
    peer = LogisticRegression(C=1 / 0.3, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y)
    torch.testing.assert_close(map_weights(x, y, 7, 0.3).weight, torch.from_numpy(peer.coef_), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tolerance", [0.0, TOLERANCE])
def test_float64_goes_on_where_float32_does_not_resolve_the_features(
    tolerance: float, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = draw.normal(30, 200).float() + 1000.0, draw.integers(3, 30)
    assert map_weights(x, y, 3, 1.0, tolerance=tolerance).warning_text("it") == ""
    monkeypatch.setattr(trust_region, "_MOST_STEPS", 0)
    assert map_weights(x, y, 3, 1.0, tolerance=tolerance).warning_text("it").startswith("it stopped with a gradient")


def test_a_fit_that_is_stopped_warns_the_caller(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quasi_newton, "_MOST_ITERATIONS", 2)
    monkeypatch.setattr(trust_region, "_MOST_STEPS", 2)
    with pytest.warns(RuntimeWarning, match="fit_map stopped with a gradient of") as caught:
        LastLayerLaplace.fit_map(draw.normal(60, 8), draw.integers(4, 60), 4)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("size", [1e200, 1e308])
def test_features_that_overflow_are_refused(size: float, draw: Draw) -> None:
    with pytest.raises(ValueError, match="features or prior_precision must be smaller"):
        map_weights(size * draw.normal(20, 3).clamp(-1, 1), draw.integers(3, 20), 3, 1.0)


def test_weights_that_overflow_are_refused(draw: Draw) -> None:
    weights = torch.full((20,), 1e300, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"^features, weights or prior_precision must be smaller"):
        LastLayerLaplace.fit_map(draw.normal(20, 3), draw.integers(3, 20), 3, weights=weights)


def problem(draw: Draw, kind: str, n: int = 200) -> tuple[Tensor, Tensor, int]:
    """Features in float32 of a kind that solvers find hard, labels, and the number of classes."""
    x = draw.normal(n, 12)
    if kind == "columns of any size":
        x = x * 10.0 ** (8 * draw.uniform(12) - 4)
    elif kind == "copies":
        x = x[draw.integers(20, n)]
    elif kind == "far from zero":
        x = x + 1e3
    elif kind == "nearly equal columns":
        x = x[:, :1] + 1e-3 * x
    y = (x @ draw.normal(12, 5)).argmax(1) if kind == "separable" else draw.integers(5, n)
    return x.float(), y, 6  # one class without a row


KINDS = ["plain", "separable", "columns of any size", "copies", "far from zero", "nearly equal columns"]


@pytest.mark.parametrize("prior_precision", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_no_probability_is_far_from_the_converged_one(kind: str, prior_precision: float, draw: Draw) -> None:
    """The tolerance is an estimate, of which ten times is allowed."""
    x, y, n_classes = problem(draw, kind)
    exact = map_weights(x.double(), y, n_classes, prior_precision).weight
    trust = 2 * draw.uniform(len(x))
    for start in (None, 0.9 * exact + 0.01):  # another row for all classes changes nothing
        fit = map_weights(x, y, n_classes, prior_precision, start=start, tolerance=TOLERANCE)
        error = (x.double() @ fit.weight.T).softmax(1) - (x.double() @ exact.T).softmax(1)
        assert fit.converged
        assert float(error.abs().max()) <= 10 * TOLERANCE
    weighted = map_weights(x, y, n_classes, prior_precision, trust=trust, tolerance=TOLERANCE)
    exact = map_weights(x.double(), y, n_classes, prior_precision, trust=trust).weight
    error = (x.double() @ weighted.weight.T).softmax(1) - (x.double() @ exact.T).softmax(1)
    assert float(error.abs().max()) <= 10 * TOLERANCE


def test_trust_is_a_number_of_copies(draw: Draw) -> None:
    x, y = draw.normal(40, 6), draw.integers(3, 40)
    copies = draw.integers(4, 40)  # also none
    weighted = map_weights(x, y, 3, 2.0, trust=copies.double()).weight
    repeated = map_weights(x.repeat_interleave(copies, 0), y.repeat_interleave(copies), 3, 2.0).weight
    torch.testing.assert_close(weighted, repeated, rtol=1e-6, atol=1e-8)


def test_a_good_start_saves_passes(draw: Draw) -> None:
    x = draw.normal(600, 20).float()
    y = (x @ draw.normal(20, 4).float() + 3 * draw.normal(600, 4)).argmax(1)
    passes = {"zero": 0, "nearly": 0}

    def counting(where: str) -> dict[str, object]:
        def gradient(*args: Tensor) -> tuple[Tensor, ...]:
            passes[where] += 1
            return ops.softmax_gradient.reference(*args)

        return {"softmax_gradient": gradient}

    nearly = map_weights(x[:590], y[:590], 4, 10.0, tolerance=TOLERANCE).weight
    for where, start in {"zero": None, "nearly": nearly}.items():
        with ops.replace_ops(counting(where)):
            map_weights(x, y, 4, 10.0, start=start, tolerance=TOLERANCE)
    assert 0 < passes["nearly"] <= 0.8 * passes["zero"]
