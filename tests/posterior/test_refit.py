"""``refit``, and what it has in common with ``fit_map``: a start, weights and a tolerance; ``gamma`` per row."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace
from lapal_ext.posterior.standardization import Standardize
from tests.draws import Draw

N, D, C = 60, 6, 4
OLD = slice(0, 50)


@pytest.fixture
def x(draw: Draw) -> Tensor:
    return draw.normal(N, D) * 2.0 + 1.0


@pytest.fixture
def y(draw: Draw) -> Tensor:
    return draw.integers(C, N)


@pytest.mark.parametrize("standardize", [True, False, "columns"])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_fit_map_with_the_same_settings(x: Tensor, y: Tensor, standardize: Standardize, bias: bool) -> None:
    settings = {"prior_precision": 2.0, "curvature": "gaussian", "fit_bias": bias, "standardize": standardize}
    names = ("ant", "bee", "cat", "dog")
    old = LastLayerLaplace.fit_map(x[OLD], y[OLD], C, **settings, class_names=names)
    before = {name: buffer.clone() for name, buffer in old.named_buffers()}
    refitted = old.refit(x, [names[label] for label in y.tolist()], tolerance=0.0)
    expected = LastLayerLaplace.fit_map(x, y, C, **settings, class_names=names, tolerance=0.0)
    torch.testing.assert_close(refitted.mean, expected.mean, rtol=0.0, atol=1e-7)
    torch.testing.assert_close(refitted.covariance, expected.covariance, rtol=0.0, atol=1e-7)
    assert (refitted.get_extra_state(), refitted.standardization.kind) == (expected.get_extra_state(), standardize)
    for name, buffer in old.named_buffers():
        assert torch.equal(buffer, before[name])


def test_a_class_that_was_added_stays(x: Tensor, y: Tensor) -> None:
    old = LastLayerLaplace.fit_map(x[OLD], y[OLD], C).add_class()
    refitted = old.refit(x, y, tolerance=0.0)
    expected = LastLayerLaplace.fit_map(x, y, C + 1, tolerance=0.0)
    torch.testing.assert_close(refitted.mean, expected.mean, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("make", ["updated", "fewer classes", "another bias", "another dtype", "half"])
def test_any_start_leads_to_the_same_minimum(make: str, x: Tensor, y: Tensor) -> None:
    expected = LastLayerLaplace.fit_map(x, y, C, tolerance=0.0)
    start = {
        "updated": lambda: LastLayerLaplace.fit_map(x[OLD], y[OLD], C).update(x[50:], y[50:]),
        "fewer classes": lambda: LastLayerLaplace.fit_map(x[OLD], y[OLD] % 2, 2),
        "another bias": lambda: LastLayerLaplace.fit_map(x[OLD], y[OLD], C, fit_bias=False, standardize=False),
        "another dtype": lambda: LastLayerLaplace.fit_map(x[OLD].float(), y[OLD], C),
        "half": lambda: LastLayerLaplace.fit_map(x[OLD].half(), y[OLD], C),
    }[make]()
    fitted = LastLayerLaplace.fit_map(x, y, C, start=start, tolerance=0.0)
    torch.testing.assert_close(fitted.mean, expected.mean, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("standardize", [True, "columns"])
@pytest.mark.parametrize("curvature", ["categorical", "gaussian"])
def test_a_weight_is_a_number_of_copies(
    x: Tensor, y: Tensor, curvature: str, standardize: Standardize, draw: Draw
) -> None:
    copies = draw.integers(3, N)  # also none
    settings = {"curvature": curvature, "standardize": standardize, "tolerance": 0.0}
    weighted = LastLayerLaplace.fit_map(x, y, C, **settings, weights=copies)
    repeated = LastLayerLaplace.fit_map(x.repeat_interleave(copies, 0), y.repeat_interleave(copies), C, **settings)
    for name, buffer in weighted.named_buffers():
        torch.testing.assert_close(buffer, repeated.get_buffer(name), rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("step", ["line_search", "newton", "joint"])
def test_gamma_per_row(step: str, x: Tensor, y: Tensor) -> None:
    model = LastLayerLaplace.fit_map(x[OLD], y[OLD], C)
    gamma = torch.tensor([1.0, 1.0, 0.5, 0.0, 2.0])
    some, labels = x[50:55], y[50:55]
    together = model.condition_on(some, labels, step, gamma)
    assert together.absorbed_labels == 5
    assert torch.equal(together.mean, model.condition_on(some, labels, step, gamma.numpy()).mean)
    equal = model.condition_on(some, labels, step, torch.full((5,), 0.5))
    torch.testing.assert_close(equal.mean, model.condition_on(some, labels, step, 0.5).mean, rtol=0.0, atol=1e-12)
    if step == "joint":
        without = model.condition_on(some[[0, 1, 2, 4]], labels[[0, 1, 2, 4]], step, gamma[[0, 1, 2, 4]])
        torch.testing.assert_close(together.mean, without.mean, rtol=0.0, atol=1e-7)
        return
    one_by_one = model
    for row in range(5):
        one = slice(row, row + 1)
        one_by_one = one_by_one.condition_on(some[one], labels[one], step, float(gamma[row]))
    torch.testing.assert_close(together.mean, one_by_one.mean, rtol=0.0, atol=1e-10)
    torch.testing.assert_close(together.precision, one_by_one.precision, rtol=0.0, atol=1e-8)


WRONG = {
    "start": [("a model", TypeError), (LastLayerLaplace(torch.zeros(2, D + 1)), ValueError)],
    "weights": [
        (torch.ones(N + 1), ValueError), (-torch.ones(N), ValueError), (torch.full((N,), torch.nan), ValueError),
        (torch.zeros(N), ValueError), (torch.ones(N, dtype=torch.bool), TypeError), (["a"] * N, TypeError),
    ],
    "tolerance": [(-1.0, ValueError), (float("nan"), ValueError), ("1", TypeError)],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_wrong_arguments_are_named(name: str, value: object, error: type[Exception], x: Tensor, y: Tensor) -> None:
    with pytest.raises(error, match=rf"^{name}\b"):
        LastLayerLaplace.fit_map(x, y, C, **{name: value})


@pytest.mark.parametrize("gamma", [torch.ones(3), -torch.ones(5), np.full(5, np.inf), -1.0, "1"])
def test_a_wrong_gamma_changes_nothing(gamma: object, x: Tensor, y: Tensor) -> None:
    model = LastLayerLaplace.fit_map(x[OLD], y[OLD], C)
    before = model.mean.clone()
    with pytest.raises((TypeError, ValueError), match=r"^gamma\b"):
        model.update(x[50:55], y[50:55], gamma=gamma)
    assert torch.equal(model.mean, before)
    assert model.absorbed_labels == 0


def test_an_overflow_in_a_later_run_changes_nothing(x: Tensor, y: Tensor) -> None:
    model = LastLayerLaplace.fit_map(x[OLD].float(), y[OLD], C)
    before, rows = model.mean.clone(), x[50:52].float()
    with pytest.raises((ValueError, RuntimeError)):
        model.update(rows * torch.tensor([[1.0], [1e30]]), y[50:52], gamma=torch.tensor([1.0, 2.0]))
    assert torch.equal(model.mean, before)
    assert model.absorbed_labels == 0
