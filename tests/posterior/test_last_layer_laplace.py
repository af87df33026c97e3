"""The posterior: construction, fit, predictions, and its use as a module."""

import copy
import math
import warnings
from functools import partial

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from lapal_ext import LastLayerLaplace, NotFittedError
from lapal_ext.likelihood import CURVATURES
from tests.draws import Draw
from tests.ops.dense_posterior import curvature_weight, softmax
from tests.problems import make_problem


def make_layer(draw: Draw, *, bias: bool) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, 7, 4, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(draw.normal(*parameter.shape))
    return layer


@pytest.mark.parametrize("curvature", CURVATURES)
def test_fit_is_the_inverse_of_the_precision(draw: Draw, curvature: str) -> None:
    weight, x = draw.normal(4, 7), draw.normal(30, 7)
    posterior = LastLayerLaplace(weight, prior_precision=0.3, curvature=curvature)
    assert posterior.fit(x) is posterior
    precision = 0.3 * torch.eye(7, dtype=torch.float64)
    for phi in x:
        precision += curvature_weight(weight @ phi, curvature) * torch.outer(phi, phi)
    torch.testing.assert_close(posterior.precision, precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(posterior.covariance, torch.linalg.inv(precision), rtol=1e-11, atol=1e-14)


def test_fit_replaces_and_never_accumulates(draw: Draw) -> None:
    posterior = LastLayerLaplace(draw.normal(4, 7)).fit(draw.normal(30, 7))
    x = draw.normal(20, 7)
    posterior.update(x, draw.integers(4, 20))
    first = posterior.fit(x).covariance.clone()
    assert torch.equal(posterior.fit(x).covariance, first)
    torch.testing.assert_close(posterior.precision @ first, torch.eye(7, dtype=torch.float64))


def test_fit_without_rows_is_the_prior(draw: Draw) -> None:
    posterior = LastLayerLaplace(draw.normal(4, 7), prior_precision=4.0).fit(draw.normal(0, 7))
    assert torch.equal(posterior.covariance, torch.eye(7, dtype=torch.float64) / 4)


def test_latent_prediction_by_definition(dtype: torch.dtype) -> None:
    posterior, pool, *_ = make_problem(dtype=dtype)
    logits, variance = posterior.predict_latent(pool)
    inner = torch.cat([(pool - posterior.centre) * posterior.scale, torch.ones(len(pool), 1, dtype=dtype)], 1)
    torch.testing.assert_close(logits, inner @ posterior.mean.T)
    torch.testing.assert_close(variance, torch.stack([phi @ posterior.covariance @ phi for phi in inner]))
    torch.testing.assert_close(posterior.predict_logits(pool), logits)


def test_links_by_definition() -> None:
    posterior, pool, *_ = make_problem()
    logits, variance = posterior.predict_latent(pool)
    torch.testing.assert_close(posterior.predict_proba(pool, link="plugin"), softmax(logits))
    shrunk = logits / (1 + math.pi / 8 * variance).sqrt()[:, None]
    torch.testing.assert_close(posterior.predict_proba(pool), softmax(shrunk))
    noise = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = torch.stack([softmax(logits[row] + variance[row].sqrt() * noise).mean(0) for row in range(3)])
    sampled = posterior.predict_proba(pool[:3], "mc", 50_000, torch.Generator().manual_seed(4))
    torch.testing.assert_close(sampled, expected, atol=0.01, rtol=0)  # 5 standard errors of the difference


def test_monte_carlo_is_repeatable() -> None:
    posterior, pool, *_ = make_problem()
    draws = [posterior.predict_proba(pool, "mc", 10, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.testing.assert_close(draws[0].sum(1), torch.ones(len(pool), dtype=torch.float64))


def test_a_bias_is_one_more_constant_feature(draw: Draw) -> None:
    weight, bias, x, y = draw.normal(4, 7), draw.normal(4), draw.normal(30, 7), draw.integers(4, 30)
    with_bias = LastLayerLaplace(weight, bias=bias).fit(x).update(x[:9], y[:9])
    ones = torch.ones(30, 1, dtype=torch.float64)
    augmented = LastLayerLaplace(torch.cat([weight, bias[:, None]], 1)).fit(torch.cat([x, ones], 1))
    augmented.update(torch.cat([x, ones], 1)[:9], y[:9])
    assert with_bias.has_bias
    assert not augmented.has_bias
    torch.testing.assert_close(with_bias.mean, augmented.mean)
    torch.testing.assert_close(with_bias.covariance, augmented.covariance)
    assert float((with_bias.mean[:, -1] - bias).abs().min()) > 0


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_to_linear_reverses_from_linear(draw: Draw, bias: bool, standardize: bool) -> None:
    head = make_layer(draw, bias=bias)
    x = 0.7 * draw.normal(30, 7) + 0.3
    posterior = LastLayerLaplace.from_linear(head, x, standardize=standardize)
    torch.testing.assert_close(posterior.predict_logits(x), head(x).detach())
    back = posterior.to_linear()
    torch.testing.assert_close(back.weight, head.weight)
    assert (back.bias is not None) is bias
    if standardize and bias:
        assert abs(float(posterior.standardization.standardized(x)[:, :-1].mean())) < 1e-12
        assert abs(float(posterior.standardization.standardized(x)[:, :-1].square().mean()) - 1) < 1e-12
    posterior.update(x[:5], draw.integers(4, 5))
    torch.testing.assert_close(posterior.to_linear()(x).detach(), posterior.predict_logits(x))
    assert not torch.allclose(back.weight, posterior.to_linear().weight)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_from_linear_warns_about_features_of_another_scale(draw: Draw, factor: float) -> None:
    head, x = make_layer(draw, bias=True), factor * draw.normal(30, 7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LastLayerLaplace.from_linear(head, x)
        LastLayerLaplace.from_linear(head, x, standardize=True)
    assert [w.category for w in caught] == ([] if factor == 1.0 else [UserWarning])


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_scaling_the_features_changes_no_prediction(factor: float) -> None:
    _, pool, labels, points, _ = make_problem()
    train, targets = pool[:30], labels[:30]
    plain = LastLayerLaplace.fit_map(train, targets, 4).update(pool[30:], labels[30:])
    scaled = LastLayerLaplace.fit_map(factor * train, targets, 4).update(factor * pool[30:], labels[30:])
    torch.testing.assert_close(plain.predict_proba(points), scaled.predict_proba(factor * points), rtol=1e-6, atol=1e-9)


def test_fit_map_is_the_penalised_maximum() -> None:
    _, pool, labels, _, _ = make_problem()
    posterior = LastLayerLaplace.fit_map(pool, labels, 4, prior_precision=3.0, tolerance=0.0)
    inner = posterior.standardization.standardized(pool)
    gap = posterior.predict_proba(pool, link="plugin") - nn.functional.one_hot(labels, 4)
    assert float((gap.T @ inner + 3.0 * posterior.mean).abs().max()) < 1e-5
    plain = LastLayerLaplace.fit_map(
        pool, labels, 4, prior_precision=3.0, fit_bias=False, standardize=False, tolerance=0.0
    )
    peer = LogisticRegression(C=1 / 3.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(pool, labels)
    torch.testing.assert_close(plain.mean, torch.from_numpy(peer.coef_), rtol=1e-4, atol=1e-5)


def test_fit_map_predicts_classes_without_labels(draw: Draw) -> None:
    posterior = LastLayerLaplace.fit_map(draw.normal(3, 5), torch.tensor([6, 6, 2]), num_classes=8)
    assert posterior.predict_proba(draw.normal(4, 5)).shape == (4, 8)


def test_the_number_of_classes_or_their_names_are_needed(draw: Draw) -> None:
    x, y, names = draw.normal(9, 5), torch.tensor([0, 1, 2]).repeat(3), list("abcd")
    model = LastLayerLaplace
    calls = (partial(model.fit_map, x, y), partial(model.untrained, x), partial(model.optimize_prior_precision, x, y))
    for call in calls:
        with pytest.raises(TypeError, match=r"num_classes must be the number of classes.* pass num_classes=10"):
            call()
    assert model.fit_map(x, y, class_names=names).num_classes == 4
    assert model.untrained(x, class_names=names).class_names == tuple(names)


def test_the_prior_precision_is_found_for_labels_by_name(draw: Draw) -> None:
    y, names = draw.integers(3, 60), ("a", "b", "c")
    x = draw.normal(60, 5) + torch.nn.functional.one_hot(y, 5)
    tried = torch.tensor([0.1, 30.0, 1e5])
    find = partial(LastLayerLaplace.optimize_prior_precision, x, prior_precisions=tried)
    by_number = find(y, 3, generator=torch.Generator().manual_seed(2))
    by_name = find([names[label] for label in y], class_names=names, generator=torch.Generator().manual_seed(2))
    assert by_name == by_number


def test_constant_features_have_scale_one() -> None:
    posterior = LastLayerLaplace.fit_map(torch.full((4, 3), 2.0), torch.tensor([0, 1, 0, 1]), num_classes=2)
    assert float(posterior.scale) == 1.0
    assert bool(posterior.predict_proba(torch.full((1, 3), 2.0)).isfinite().all())


def test_everything_that_needs_the_covariance_asks_for_fit(draw: Draw) -> None:
    posterior, x, y = LastLayerLaplace(draw.normal(4, 7)), draw.normal(3, 7), draw.integers(4, 3)
    for call in (
        lambda: posterior.update(x, y),
        lambda: posterior.condition_on(x, y),
        lambda: posterior.predict_latent(x),
        lambda: posterior.predict_proba(x),
        posterior.drift,
        posterior.refresh,
    ):
        with pytest.raises(NotFittedError, match="call fit"):
            call()
    torch.testing.assert_close(posterior.predict_proba(x, link="plugin"), softmax(x @ posterior.mean.T))


def test_states_and_dtypes_are_those_of_any_module() -> None:
    posterior, pool, labels, points, _ = make_problem()
    posterior.update(pool[:3], labels[:3])
    model = nn.Sequential(nn.Identity(), posterior)
    state = model.state_dict()
    other, *_ = make_problem(seed=5)
    nn.Sequential(nn.Identity(), other).load_state_dict(state)
    assert torch.equal(other.predict_proba(points), posterior.predict_proba(points))
    assert torch.equal(other.precision, posterior.precision)
    blank = LastLayerLaplace(torch.zeros(4, 12, dtype=torch.float64), 9.0, "gaussian", bias=torch.zeros(4).double())
    blank.load_state_dict(posterior.state_dict())
    assert (blank.fitted, blank.curvature, blank.prior_precision) == (True, "categorical", 10.0)
    single = posterior.clone().float()
    assert {buffer.dtype for buffer in single.buffers()} == {torch.float32}
    torch.testing.assert_close(single.predict_proba(points.float()).double(), posterior.predict_proba(points))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_shallow_copy_and_its_original_change_apart() -> None:
    posterior, pool, labels, points, _ = make_problem()
    expected = posterior.condition_on(pool[:3], labels[:3]).add_class()
    state = copy.deepcopy(posterior.state_dict())
    twin = copy.copy(posterior)
    assert twin.mean.data_ptr() == posterior.mean.data_ptr()
    assert twin.update(pool[:3], labels[:3]).add_class() is twin
    assert torch.equal(twin.predict_proba(points), expected.predict_proba(points))
    assert torch.equal(twin.precision, expected.precision)
    twin.float()
    now = posterior.state_dict()
    assert now.pop("_extra_state") == state.pop("_extra_state")
    torch.testing.assert_close(dict(now), dict(state), rtol=0.0, atol=0.0)


def test_results_never_require_grad_nor_alias(draw: Draw) -> None:
    weight = nn.Parameter(draw.normal(4, 7))
    x = draw.normal(9, 7).requires_grad_()
    posterior = LastLayerLaplace(weight).fit(x).update(x, draw.integers(4, 9))
    assert posterior.mean.data_ptr() != weight.data_ptr()
    for result in (posterior.mean, posterior.predict_proba(x), *posterior.predict_latent(x)):
        assert not result.requires_grad
