"""Ten thousand updates in float32, and features that its covariance cannot take: bounded errors, or NotPSDError.

pytest -m slow tests/campaigns/test_numerics.py
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace
from lapal_ext.likelihood import PSD_SLACK
from tests.campaigns.tally import count
from tests.draws import Draw

CAMPAIGN = "numerics over time"
EPS = torch.finfo(torch.float32).eps
DRIFT, REFRESHED = 1e-3, 1e-6  # the bounds of DESIGN, section 6, for standardised features
CLASSES = 10


class Long(NamedTuple):
    """Many labels for a model that begins with few: standardised features in float32."""

    posterior: LastLayerLaplace
    x: Tensor  # [n, D]
    y: Tensor  # [n]


def problem(n_features: int, count: int, curvature: str, seed: int = 0) -> Long:
    """Class clusters whose directions differ in scale as those of an encoder do, by a factor of thirty."""
    draw = Draw(seed)
    scales = torch.logspace(0.0, -1.5, n_features, dtype=torch.float64)
    centres = draw.normal(CLASSES, n_features) * scales

    def sample(size: int) -> tuple[Tensor, Tensor]:
        labels = draw.integers(CLASSES, size)
        return (centres[labels] + draw.normal(size, n_features) * scales).float(), labels

    posterior = LastLayerLaplace.fit_map(*sample(10 * CLASSES), CLASSES, curvature=curvature)
    return Long(posterior, *sample(count))


def check_long_run(n_features: int, n_labels: int, group: int, step: str, curvature: str) -> None:
    """Absorb labels in groups; drift, variances and the error against one fit in float64 stay bounded."""
    posterior, x, y = problem(n_features, n_labels, curvature)
    first = posterior.predict_latent(x[:500]).variance
    worst, lowest = 0.0, 0.0
    for start in range(0, n_labels, group):
        posterior.update(x[start : start + group], y[start : start + group], step)
        if start % (50 * group) == 0:
            variance = posterior.predict_latent(x[:500]).variance
            lowest = min(lowest, float((variance / first).min()))
            worst = max(worst, posterior.drift())
    drift = max(worst, posterior.drift())
    words = f"D={n_features}, {n_labels} labels, {group} at once, {step}, {curvature}"
    assert drift <= DRIFT, f"{words}: drift {drift:.1e}"
    assert lowest >= -PSD_SLACK * EPS, f"{words}: variance {lowest:.1e} of the first"
    assert torch.equal(posterior.covariance, posterior.covariance.T)
    healed = posterior.refresh().drift()
    assert healed <= REFRESHED, f"{words}: drift {healed:.1e} after refresh()"
    count(CAMPAIGN, "updates", n_labels)
    print(f"{words}: drift {drift:.1e}, refreshed {healed:.1e}, lowest variance {lowest:.1e} of the first")


@pytest.mark.parametrize("group", [1, 7, 100])
@pytest.mark.parametrize("curvature", ["categorical", "gaussian"])
def test_a_short_run(group: int, curvature: str) -> None:
    check_long_run(48, 1000, group, "line_search", curvature)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 7, 100, 10_000])
@pytest.mark.parametrize(("step", "curvature"), [("line_search", "categorical"), ("newton", "gaussian")])
def test_ten_thousand_labels(group: int, step: str, curvature: str) -> None:
    check_long_run(384, 10_000, group, step, curvature)
