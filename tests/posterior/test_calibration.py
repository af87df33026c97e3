import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.posterior.calibration import fit_temperature
from lapal_ext.posterior.prior_search import assign_folds

CLASSES = 3


def labelled(count: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    y = torch.arange(count) % CLASSES
    x = torch.nn.functional.one_hot(y, 8) + noise * torch.randn(count, 8, generator=generator)
    return x.double(), y


def prior_of(x: torch.Tensor, prior_precision: float = 10.0, classes: int = CLASSES) -> LastLayerLaplace:
    return LastLayerLaplace.untrained(x, classes, prior_precision)


def test_it_is_the_best_temperature_of_held_out_rows_whose_class_is_known() -> None:
    x, y = labelled(60, 0.5)
    y[7] = 3  # the only label of its class, so that no model without it can be right
    prior = prior_of(x, 5.0, 4)
    fold = assign_folds(y, 10, torch.Generator().manual_seed(0))
    loss = torch.zeros(200, dtype=torch.float64)
    grid = torch.logspace(-0.6, 0.6, 200, dtype=torch.float64)
    for row in range(60):
        if row != 7:
            kept = fold != fold[row]
            logits = prior.condition_on(x[kept], y[kept], "joint").predict_logits(x[row : row + 1])
            own = 15.0 / 59.0 * logits.softmax(1)
            for targets in (y[row : row + 1], own):
                loss += torch.stack([torch.nn.functional.cross_entropy(logits / t, targets) for t in grid])
    best = int(loss.argmin())
    assert 0 < best < 199
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


def test_few_labels_give_no_temperature() -> None:
    x, y = labelled(19, 0.5)
    assert fit_temperature(prior_of(x), x, y) == 1.0
    assert fit_temperature(prior_of(x), x[:0], y[:0]) == 1.0


def test_a_sample_of_many_labels_gives_the_temperature() -> None:
    x, y = labelled(1500, 0.5)
    generator = torch.Generator().manual_seed(0)
    kept = torch.randperm(1500, generator=generator)[:1000]
    assert fit_temperature(prior_of(x), x, y) == fit_temperature(prior_of(x), x[kept], y[kept], generator)


def test_the_temperature_has_bounds() -> None:
    x, y = labelled(900, 0.0)
    assert fit_temperature(prior_of(x, 1e4), x, y) == pytest.approx(0.25, rel=1e-6)


def test_errors_name_the_argument() -> None:
    x, y = labelled(30, 0.5)
    with pytest.raises(ValueError, match="features must have shape"):
        fit_temperature(prior_of(x), x[:, :3], y)
    with pytest.raises(ValueError, match="targets must lie in"):
        fit_temperature(prior_of(x), x, y + 1)
