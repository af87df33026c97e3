import math

import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.posterior.calibration import calibrate, fit_temperature
from lapal_ext.posterior.prior_search import assign_folds

CLASSES = 3


def labelled(count: int, noise: float, width: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    y = torch.arange(count) % CLASSES
    x = torch.nn.functional.one_hot(y, width) + noise * torch.randn(count, width, generator=generator)
    return x.double(), y


def prior_of(x: torch.Tensor, prior_precision: float = 10.0, classes: int = CLASSES) -> LastLayerLaplace:
    return LastLayerLaplace.untrained(x, classes, prior_precision)


def suggested(prior: LastLayerLaplace, x: torch.Tensor, y: torch.Tensor) -> float:
    """T_0: half the excess of a labelled row is then half-way between chance and certainty."""
    logits = prior.condition_on(x, y, "joint").predict_logits(x)
    share = torch.exp(-torch.nn.functional.cross_entropy(logits, y))
    excess = torch.logit(share) + math.log(prior.num_classes - 1)
    return float(excess) / (2 * math.log(prior.num_classes + 1))


def excess(logits: torch.Tensor) -> torch.Tensor:
    """Of the most likely class over the others: the log odds, which are zero for equal logits."""
    return torch.logit(logits.softmax(1).amax(1)) + math.log(logits.shape[1] - 1)


@pytest.mark.parametrize(("noise", "width", "full"), [(0.5, 8, False), (0.5, 64, True)])
def test_it_is_the_best_temperature_of_held_out_rows_whose_class_is_known(noise: float, width: int, full: bool) -> None:
    x, y = labelled(60, noise, width)
    y[7] = 3  # the only label of its class, so that no model without it can be right
    prior = prior_of(x, 5.0, 4)
    fold, start = assign_folds(y, 10, torch.Generator().manual_seed(0)), suggested(prior, x, y)
    rows = [row for row in range(60) if row != 7]
    held_out = torch.cat(
        [
            prior.condition_on(x[fold != fold[row]], y[fold != fold[row]], "joint").predict_logits(x[row : row + 1])
            for row in rows
        ]
    )
    ratio = excess(held_out).mean() / excess(prior.condition_on(x, y, "joint").predict_logits(x)[rows]).mean()
    weight = min(1.0, 3.0 * float(1.0 - ratio))
    assert 0.0 < weight <= 1.0
    assert (weight == 1.0) == full
    grid = torch.logspace(-0.9, 0.9, 400, dtype=torch.float64)
    loss = torch.zeros(400, dtype=torch.float64)
    for share, targets in (
        (1.0, y[rows]),
        (40.0 * weight / 59.0, (held_out / start).softmax(1)),
        (15.0 * (1.0 - weight) / 59.0, held_out.softmax(1)),
    ):
        loss += share * torch.stack([torch.nn.functional.cross_entropy(held_out / t, targets) for t in grid])
    best = int(loss.argmin())
    assert 0 < best < 399
    assert float(grid[best - 1]) < fit_temperature(prior, x, y) < float(grid[best + 1])


@pytest.mark.parametrize("prior_precision", [0.01, 100.0])
def test_probabilities_are_about_as_high_as_the_accuracy(prior_precision: float) -> None:
    x, y = labelled(1200, 0.8)
    prior = prior_of(x[:100], prior_precision)
    model = prior.condition_on(x[:100], y[:100], "joint")
    logits = model.predict_logits(x[100:])
    accuracy = float((logits.argmax(1) == y[100:]).double().mean())
    plugin = float(logits.softmax(1).amax(1).mean())
    calibrated = float((logits / fit_temperature(prior, x[:100], y[:100])).softmax(1).amax(1).mean())
    assert abs(calibrated - accuracy) < 0.05 < abs(plugin - accuracy)


@pytest.mark.parametrize("prior_precision", [0.5, 10.0, 100.0])
def test_one_label_per_class_tells_how_likely_half_its_row_is(prior_precision: float) -> None:
    """A row half as similar to the one label of its class is half-way from chance to certain."""
    x, y, classes = 5.0 * torch.eye(6, 8, dtype=torch.float64), torch.arange(6), 6
    prior = LastLayerLaplace(torch.zeros(classes, 8, dtype=torch.float64), prior_precision)
    prior.fitted = True
    assert calibrate(prior, x, y).error == math.inf
    temperature = fit_temperature(prior, x, y)
    assert temperature == pytest.approx(suggested(prior, x, y), rel=1e-4)
    logits = prior.condition_on(x, y, "joint").predict_logits(0.5 * x)
    top = (logits / temperature).softmax(1).diagonal()
    assert top.tolist() == pytest.approx([0.5 * (1 + 1 / classes)] * classes, rel=1e-6)


def test_few_held_out_rows_count_for_little() -> None:
    """Two labels of a class that are right about each other do not make the model certain."""
    x, y = labelled(4, 0.1)
    y[0] = y[3] = 1  # the others are the only ones of their classes
    prior = prior_of(x, 10.0, 4)
    start = suggested(prior, x, y)
    assert 0.8 * start < fit_temperature(prior, x, y) < 1.25 * start
    assert calibrate(prior, x[:0], y[:0]) == (1.0, math.inf)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_features_of_any_size_give_a_finite_temperature(scale: float) -> None:
    x, y = labelled(60, 0.5)
    prior = LastLayerLaplace(torch.zeros(3, 8, dtype=torch.float64), 1.0)
    prior.fitted = True
    temperature = fit_temperature(prior, scale * x, y)
    assert 0.0 < temperature < math.inf
    if scale < 1.0:  # nothing is made of rounding
        assert 0.249 < temperature < 4.001


def test_a_sample_of_many_labels_gives_the_temperature() -> None:
    x, y = labelled(1500, 0.5)
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(1500, generator=generator)[:1000]
    assert fit_temperature(prior_of(x), x, y) == fit_temperature(prior_of(x), x[kept], y[kept], generator)


def test_the_temperature_has_bounds() -> None:
    """Every row has a copy with the other label, so that the model without it is always wrong."""
    x = 9.0 * torch.eye(50, dtype=torch.float64).repeat(2, 1)
    y = torch.arange(100) // 50
    prior = prior_of(x, 1.0, 2)
    assert fit_temperature(prior, x, y) == pytest.approx(4 * max(1.0, suggested(prior, x, y)), rel=1e-4)


def test_errors_name_the_argument() -> None:
    x, y = labelled(30, 0.5)
    with pytest.raises(ValueError, match="features must have shape"):
        fit_temperature(prior_of(x), x[:, :3], y)
    with pytest.raises(ValueError, match="targets must lie in"):
        fit_temperature(prior_of(x), x, y + 1)
