"""Ten thousand updates in float32, and features that are hard for a float32 covariance: bounded errors or NotPSDError.

pytest -m slow tests/fuzz/test_numerics.py
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, NotPSDError
from lapal_ext.likelihood import PSD_SLACK
from tests.draws import Draw
from tests.fuzz.calls import bits
from tests.fuzz.tally import count

CAMPAIGN = "numerics over time"
EPS = torch.finfo(torch.float32).eps
DRIFT, REFRESHED = 1e-3, 1e-6  # bounds for standardised features
CLASSES = 10


class Long(NamedTuple):
    """A model fitted to few labels, and many more labels for it: standardised features in float32."""

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
def test_errors_stay_bounded_over_a_thousand_labels(group: int, curvature: str) -> None:
    check_long_run(48, 1000, group, "line_search", curvature)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 7, 100, 10_000])
@pytest.mark.parametrize(("step", "curvature"), [("line_search", "categorical"), ("newton", "gaussian")])
def test_errors_stay_bounded_over_ten_thousand_labels(group: int, step: str, curvature: str) -> None:
    check_long_run(384, 10_000, group, step, curvature)


# Features whose covariance float32 may not be able to represent


def rows_of(kind: str, draw: Draw, count: int, n_features: int) -> Tensor:  # [count, D] float64
    x = draw.normal(count, n_features)
    match kind:
        case "duplicated rows":
            x = x[: count // 5].repeat(6, 1)[:count]
        case "near-duplicate rows":
            x = x[:1] + 1e-4 * draw.normal(count, n_features)
        case "duplicated columns":
            x[:, 1::2] = x[:, ::2]
        case "near-collinear columns":
            x[:, 1:] = x[:, :1] + 1e-5 * draw.normal(count, n_features - 1)
        case "rows of all sizes":
            x = x * 10.0 ** (6 * draw.uniform(count, 1) - 3)
        case "columns of all sizes":
            x = x * 10.0 ** (6 * draw.uniform(1, n_features) - 3)
    return x / x.norm(dim=1).mean()


KINDS = (
    "random", "duplicated rows", "near-duplicate rows", "duplicated columns", "near-collinear columns",
    "rows of all sizes", "columns of all sizes",
)  # fmt: skip
NORMS = (1e-6, 1e-3, 1.0, 1e3, 1e4, 1e5, 1e6)


def check_hard_features(kind: str, norm: float, seed: int, group: int, fitted: bool, step: str, curvature: str) -> None:
    """Updates either raise NotPSDError and change nothing, or give the results of float64."""
    draw, size = Draw(seed), 60
    x, y = (norm * rows_of(kind, draw, size, 16)).float(), draw.integers(3, size)
    points = torch.cat([x, x + x.abs().mean() * draw.normal(size, 16).float()])
    posterior = LastLayerLaplace((draw.normal(3, 16) / max(norm, 1e-3)).float(), curvature=curvature)
    posterior.fit(x[:20] if fitted else x[:0])
    exact = posterior.clone().double()
    words = f"{kind} of norm {norm:g}, {group} at once, fitted: {fitted}, {step}, {curvature}, seed {seed}"
    try:
        for start in range(0, size, group):
            before = bits(posterior)
            posterior.update(x[start : start + group], y[start : start + group], step)
            before = None
        latent, probabilities = posterior.predict_latent(points), posterior.predict_proba(points)
    except NotPSDError:
        assert before in (None, bits(posterior)), f"{words}: an update that failed has changed something"
        count(CAMPAIGN, "hard problems refused with NotPSDError")
        return
    for start in range(0, size, group):
        exact.update(x[start : start + group].double(), y[start : start + group], step)
    truth = exact.predict_latent(points.double())
    error = ((latent.variance - truth.variance).abs() / (1.0 + truth.variance)).max()
    assert error <= 1.0, f"{words}: 1 + variance has a relative error of {float(error):.1e}"
    gap = (probabilities - exact.predict_proba(points.double())).abs().max()
    assert gap <= 0.1, f"{words}: a probability is off by {float(gap):.1e}"
    count(CAMPAIGN, "hard problems solved as in float64")


@pytest.mark.parametrize("norm", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_hard_features_raise_or_agree_with_float64(kind: str, norm: float) -> None:
    for fitted in (False, True):
        check_hard_features(kind, norm, 0, 7, fitted, "line_search", "categorical")


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_hard_features_raise_or_agree_with_float64(kind: str, norm: float) -> None:
    for seed in range(4):
        for group in (1, 7, 60):
            for fitted in (False, True):
                check_hard_features(kind, norm, seed, group, fitted, "line_search", "categorical")
                check_hard_features(kind, norm, seed, group, fitted, "newton", "gaussian")


def test_the_same_features_are_accepted_if_standardised() -> None:
    """Standardising is the remedy that the error names."""
    draw = Draw(0)
    x, y = (1e6 * rows_of("duplicated columns", draw, 60, 16)).float(), draw.integers(3, 60)
    posterior = LastLayerLaplace.fit_map(x[:20], y[:20], 3)
    exact = posterior.clone().double().update(x.double(), y)
    gap = (posterior.update(x, y).predict_proba(x) - exact.predict_proba(x.double())).abs().max()
    assert gap <= 1e-4
