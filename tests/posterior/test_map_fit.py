"""The fit of the layer itself: the gradient vanishes, whatever the features, and a warning says so if it does not."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext import LastLayerLaplace
from lapal_ext.posterior import map_fit
from lapal_ext.posterior.map_fit import _Objective, map_weights
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


def test_steps_are_found_in_float64_where_float32_does_not_help(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = 1e6 * (draw.normal(30, 200) + 100.0), draw.integers(2, 30)
    assert map_weights(x, y, 2, 65.0).warning_text("it") == ""
    curvature = _Objective.curvature
    monkeypatch.setattr(_Objective, "curvature", lambda self, _: curvature(self, torch.float32))
    assert map_weights(x, y, 2, 65.0).warning_text("it").startswith("it stopped with a gradient of")


def test_a_fit_that_is_stopped_warns_the_caller(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_fit, "_MAX_STEPS", 2)
    with pytest.warns(RuntimeWarning, match="fit_map stopped with a gradient of") as caught:
        LastLayerLaplace.fit_map(draw.normal(60, 8), draw.integers(4, 60), 4)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("size", [1e200, 1e308])
def test_features_that_overflow_are_refused(size: float, draw: Draw) -> None:
    with pytest.raises(ValueError, match="features or prior_precision must be smaller"):
        map_weights(size * draw.normal(20, 3).clamp(-1, 1), draw.integers(3, 20), 3, 1.0)
