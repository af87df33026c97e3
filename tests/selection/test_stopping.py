"""The accuracy to expect on a pool, and the share of rows that change their class."""

import math

import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.posterior.calibration import Calibration, calibrate, fit_temperature
from lapal_ext.selection.stopping import changed_classes, expected_accuracy
from tests.draws import Draw
from tests.problems import make_problem

PROBLEM = make_problem(dtype=torch.float32)
EXACT = Calibration(0.7, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_the_mean_of_the_highest_probabilities(dtype: torch.dtype) -> None:
    model, pool = PROBLEM.posterior, PROBLEM.pool.to(dtype)
    highest = (model.predict_logits(pool.float()) / 0.7).softmax(1).amax(1)
    value, low, high = expected_accuracy(model, pool, EXACT)
    assert value == pytest.approx(float(highest.mean()), abs=1e-5)
    assert (value - low, high - value) == pytest.approx((1.96 * 0.025, 1.96 * 0.025))
    rest = [row for row in range(60) if row not in (3, 50)]
    value = expected_accuracy(model, pool.numpy(), EXACT, exclude=[3, 50]).value
    assert value == pytest.approx(float(highest[rest].mean()), abs=1e-5)


def test_the_interval_has_the_error_of_the_calibration_and_stays_a_share() -> None:
    value, low, high = expected_accuracy(PROBLEM.posterior, PROBLEM.pool, EXACT._replace(error=0.06))
    assert high - low == pytest.approx(min(1.0, value + 1.96 * 0.065) - (value - 1.96 * 0.065))
    assert expected_accuracy(PROBLEM.posterior, PROBLEM.pool, EXACT._replace(error=math.inf))[1:] == (0.0, 1.0)


@pytest.mark.parametrize("seed", range(8))
def test_the_error_is_that_of_the_mean_over_held_out_rows(seed: int) -> None:
    """With features that say nothing, every held-out row has the share of its class."""
    targets = torch.arange(100) % 2
    features = torch.zeros(100, 3, dtype=torch.float64)
    prior = type(PROBLEM.posterior).untrained(Draw(seed).normal(20, 3), 2)
    calibration = calibrate(prior, features, targets)
    assert calibration.temperature == fit_temperature(prior, features, targets)
    assert calibration.error == pytest.approx(0.5 / 10, rel=0.02)
    few = calibrate(prior, features[:5], targets[:5])
    logits = prior.condition_on(features[:5], targets[:5], "joint").predict_logits(features[:1])
    assert few.error == math.inf
    assert 0.5 < float((logits / few.temperature).softmax(1).max()) < 0.7


def test_changed_classes_are_counted() -> None:
    before, pool = PROBLEM.posterior, PROBLEM.pool
    after = before.condition_on(pool[:5], (PROBLEM.labels[:5] + 1) % 4)
    changed = before.predict_logits(pool).argmax(1) != after.predict_logits(pool).argmax(1)
    assert 0.0 < changed_classes(before, after, pool) == pytest.approx(float(changed.double().mean()))
    assert changed_classes(before, before, pool) == 0.0


def test_errors_name_the_argument() -> None:
    model, pool = PROBLEM.posterior, PROBLEM.pool
    steep, far = LastLayerLaplace(torch.tensor([[9.0], [-9.0]])).fit(torch.zeros(1, 1)), torch.full((2, 1), 1e38)
    for call, message in (
        (
            lambda: expected_accuracy(model, pool, EXACT, exclude=range(60)),
            "^no row is left: exclude has all rows of pool$",
        ),
        (lambda: expected_accuracy(model, pool[:0], EXACT), "^no row is left: pool has no rows$"),
        (lambda: expected_accuracy(model, pool[:0], EXACT, exclude=[]), "^no row is left: pool has no rows$"),
        (lambda: expected_accuracy(model, pool, EXACT, exclude=[60]), "exclude must lie in"),
        (lambda: expected_accuracy(model, pool * torch.nan, EXACT), "pool must be finite"),
        (lambda: expected_accuracy(steep, far, EXACT), "^pool must give results that are finite"),
        (lambda: expected_accuracy(model, pool, EXACT._replace(temperature=0.0)), "temperature must be greater"),
        (lambda: expected_accuracy(model, pool, EXACT._replace(temperature=math.nan)), "temperature must be finite"),
        (lambda: expected_accuracy(model, pool, EXACT._replace(error=math.nan)), "calibration.error must be finite"),
        (lambda: changed_classes(model, model, pool[:, :3]), "pool must have"),
        (lambda: changed_classes(steep, steep, far), "^pool must give results that are finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for value in (None, 0.7, (0.7, 0.0)):
        with pytest.raises(TypeError, match=r"^calibration must be what calibrate\(\) returned, got "):
            expected_accuracy(model, pool, value)


def test_only_models_of_the_same_classes_are_compared() -> None:
    model, pool = PROBLEM.posterior, PROBLEM.pool
    assert changed_classes(model, model.clone().add_class(), pool) == 0.0  # a new class is never the likeliest
    named, other = model.clone(), model.clone()
    named.class_names, other.class_names = ["a", "b", "c", "d"], ["b", "a", "c", "d"]
    assert changed_classes(model, other, pool) == changed_classes(named, named.clone().add_class("e"), pool) == 0.0
    narrow = make_problem(n_features=3, dtype=torch.float32).posterior
    for before, after, message in (
        (model.clone().add_class(), model, "after must have the 5 classes of before, got 4"),
        (named, other, "after must have the classes of before in the same order, got 'b' in place of 'a'"),
        (model, narrow, f"after must have {model.num_features} features like before, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            changed_classes(before, after, pool)
    with pytest.raises(TypeError, match=r"^before must be a LastLayerLaplace, got NoneType"):
        changed_classes(None, model, pool)
