"""Posteriors with damaged buffers, and features whose covariance float32 cannot represent."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lapal_ext import (
    LastLayerLaplace,
    NotPSDError,
    SequentialSelector,
    expected_error_reduction,
    look_ahead,
    select_batch,
)
from lapal_ext.ops import OPS
from tests.draws import Draw, cast
from tests.fuzz.calls import bits
from tests.ops.examples import example
from tests.problems import make_problem

problem = make_problem(dtype=torch.float32)


def damaged(name: str, value: float) -> LastLayerLaplace:
    model = problem.posterior.clone()
    getattr(model, name).view(-1)[0] = value
    return model


@pytest.mark.parametrize("name", ["mean", "covariance", "precision", "centre", "scale"])
def test_a_posterior_that_could_not_be_loaded_is_not_saved(name: str, tmp_path: Path) -> None:
    problem.posterior.save(tmp_path / "p")
    with pytest.raises(ValueError, match=rf"^{name} must be finite"):
        damaged(name, math.nan).save(tmp_path / "p")
    with pytest.raises(TypeError, match=r"^mean must be float32 or float64, got torch\.float16"):
        problem.posterior.clone().half().save(tmp_path / "p")
    assert bits(LastLayerLaplace.load(tmp_path / "p")) == bits(problem.posterior)


def test_to_linear_and_drift_refuse_buffers_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match=r"^mean must give results that are finite"):
        damaged("mean", math.inf).to_linear()
    for name in ("covariance", "precision"):
        with pytest.raises(ValueError, match=r"^posterior must give results that are finite"):
            damaged(name, math.nan).drift()


def negative() -> LastLayerLaplace:
    model = problem.posterior.clone()
    model.covariance.neg_()
    return model


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("features", lambda m: m.predict_latent(problem.pool)),
        ("features", lambda m: m.predict_proba(problem.pool)),
        ("features", lambda m: m.predict_proba(problem.pool, "mc", n_samples=3)),
        ("pool", lambda m: select_batch(m, problem.pool, 1, "variance")),
        ("pool", lambda m: select_batch(m, problem.pool, 1, "variance", memory=1.0)),
        ("pool", lambda m: select_batch(m, problem.pool, 1, "bald")),
        ("pool", lambda m: select_batch(m, problem.pool, 1, "bait")),
        ("pool", lambda m: select_batch(m, problem.pool, 1, "margin", link="mean_field")),
    ],
)
def test_negative_variances_raise(name: str, call: Callable[[LastLayerLaplace], object]) -> None:
    model = negative()
    before = bits(model)
    with pytest.raises(NotPSDError, match=f"^covariance is not positive semi-definite along row 0 of {name}"):
        call(model)
    assert bits(model) == before


def test_losses_that_overflow_raise() -> None:
    """The logits of every point are finite in float32; their change by the batch is not."""
    _, pool, labels, points, _ = problem
    model = problem.posterior.clone()
    model.covariance *= 1e20
    with pytest.raises((ValueError, NotPSDError)):
        look_ahead(model, pool, torch.tensor([[0, 1]]), labels, points, step="newton")
    with pytest.raises((ValueError, NotPSDError)):
        expected_error_reduction(model, 1e9 * pool, 1e9 * points, gamma=1e20)


@pytest.mark.parametrize("n_rows", [1, 2])
def test_an_observation_that_leaves_only_rounding_errors_raises(n_rows: int) -> None:
    x, y = Draw(0).normal(n_rows, 4), torch.tensor([0, 1][:n_rows])
    rows = 1e4 * x / x.norm(dim=1, keepdim=True)
    model = LastLayerLaplace(torch.zeros(2, 4), curvature="gaussian").fit(torch.zeros(0, 4))
    before = bits(model)
    with pytest.raises(NotPSDError, match=r"^covariance cannot hold in torch\.float32 the variance along row 0 of"):
        model.update(rows.float(), y)
    assert bits(model) == before
    wide = LastLayerLaplace(torch.zeros(2, 4).double(), curvature="gaussian").fit(torch.zeros(0, 4).double())
    wide.update(rows, y)
    assert wide.drift() < 1e-6


@pytest.mark.parametrize("acquisition", ["variance", "badge", "coreset", lambda _, pool: pool.norm(dim=1)])
@pytest.mark.parametrize(("batch_size", "candidates"), [(1, None), (3, None), (3, range(5, 30))])
def test_a_pick_that_cannot_be_absorbed_is_named_as_a_row_of_pool(
    acquisition: Any, batch_size: int, candidates: range | None
) -> None:
    model = LastLayerLaplace(torch.zeros(2, 4), curvature="gaussian").fit(torch.zeros(0, 4))
    pool, labels = Draw(0).normal(30, 4).float(), torch.zeros(30, dtype=torch.int64)
    pool[17] *= 1e4 / pool[17].norm()
    selector = SequentialSelector(model, pool, acquisition, candidates=candidates, generator=torch.Generator())
    for call in (
        lambda: select_batch(
            model, pool, batch_size, acquisition, labels, candidates=candidates, generator=torch.Generator()
        ),
        lambda: selector.tell(17, 0) or selector.posterior,
    ):
        with pytest.raises(NotPSDError, match=r"^covariance cannot hold in .* along row 17 of pool: "):
            call()


def test_a_variance_lost_in_rounding_raises() -> None:
    """Sigma is one in most directions and 1e-12 along the row, which float32 entries cannot represent."""
    row = 1e6 * torch.nn.functional.normalize(Draw(0).normal(1, 8)).float()
    model = LastLayerLaplace(torch.zeros(2, 8), curvature="gaussian").fit(row)
    with pytest.raises(NotPSDError, match=r"^covariance cannot hold in torch\.float32 the variance along row 0 of"):
        model.predict_latent(row)
    exact = LastLayerLaplace(torch.zeros(2, 8).double(), curvature="gaussian").fit(row.double())
    assert exact.predict_latent(row.double()).variance.item() == pytest.approx(1.0, rel=1e-2)


@pytest.mark.parametrize(
    ("op", "name", "wrong"),
    [("lookahead_loss", "batches", -1), ("lookahead_loss", "targets", 5), ("update_coefficients", "targets", 2**40)],
)
def test_ops_name_an_index_out_of_range(op: str, name: str, wrong: int) -> None:
    args = cast(OPS[op], example(op), torch.float32)
    args[name].view(-1)[1] = wrong
    with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, \d+\), got {wrong}$"):
        OPS[op](**args)


@pytest.mark.parametrize("threshold", [1.0, -0.1, math.nan])
def test_a_threshold_outside_of_0_to_1_is_refused(threshold: float) -> None:
    args = cast(OPS["badge_step_"], example("badge_step_"), torch.float32)
    before = bits(args["distance"])
    with pytest.raises(ValueError, match=r"^threshold must lie in \[0, 1\), got"):
        OPS["badge_step_"](**args | {"threshold": torch.tensor(threshold)})
    assert bits(args["distance"]) == before
