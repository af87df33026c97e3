"""Finite numbers whose products overflow: every function raises, and none returns a wrong number."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lapal_ext import (
    LastLayerLaplace,
    NotPSDError,
    SequentialSelector,
    baselines,
    expected_error_reduction,
    look_ahead,
    select_batch,
)
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.losses import EXPECTED_LOSSES, LOSSES
from lapal_ext.utilities import UTILITIES
from tests.draws import Draw
from tests.fuzz.calls import bits
from tests.problems import make_problem

draw = Draw(seed=1)
STEEP = LastLayerLaplace(100 * draw.normal(3, 4).float()).fit(draw.normal(9, 4).float())
ROWS, LABELS = draw.normal(6, 4).float(), draw.integers(3, 6)
FAR = 1e37 * ROWS  # float32 ends at 3.4e38: the logits of these rows do not fit
BATCHES = torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("features", lambda: STEEP.predict_logits(FAR)),
        ("features", lambda: STEEP.predict_latent(FAR)),
        ("features", lambda: STEEP.predict_proba(FAR, "plugin")),
        ("features", lambda: STEEP.condition_on(FAR, LABELS)),
        ("features", lambda: baselines.first_order(STEEP, FAR, LABELS)),
        ("features", lambda: baselines.monte_carlo(STEEP, FAR, LABELS, ROWS, n_samples=3)),
        ("eval_features", lambda: baselines.monte_carlo(STEEP, ROWS, LABELS, FAR, n_samples=3)),
        ("pool", lambda: select_batch(STEEP, FAR, 2)),
        ("pool", lambda: SequentialSelector(STEEP, FAR)),
        ("pool", lambda: look_ahead(STEEP, FAR, BATCHES, LABELS, ROWS)),
        ("pool", lambda: expected_error_reduction(STEEP, FAR, ROWS)),
        ("pool", lambda: expected_error_reduction(STEEP, FAR, ROWS, step="line_search")),
        ("eval_features", lambda: look_ahead(STEEP, ROWS, BATCHES, LABELS, FAR, LABELS, "zero_one")),
        ("eval_features", lambda: look_ahead(STEEP, ROWS, BATCHES, LABELS, 1e30 * ROWS, link="mean_field")),
        ("eval_features", lambda: expected_error_reduction(STEEP, ROWS, FAR)),
        ("eval_features", lambda: expected_error_reduction(STEEP, ROWS, FAR, step="line_search")),
    ],
)
def test_logits_that_overflow_raise(name: str, call: Callable[[], object]) -> None:
    before = bits(STEEP)
    with pytest.raises(ValueError, match=f"^{name} must give results that are finite in torch.float32"):
        call()
    assert bits(STEEP) == before


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_columns_that_overflow_raise_even_if_logits_are_finite(loss: str, value: float) -> None:
    truth = None if loss in EXPECTED_LOSSES else LABELS
    flat = LastLayerLaplace(torch.zeros(3, 4)).fit(ROWS)
    flat.covariance[0, 0] = value
    with pytest.raises(ValueError, match=r"^(pool|eval_features) must give results that are finite"):
        look_ahead(flat, ROWS, BATCHES, LABELS, ROWS, truth, loss)
    far = torch.tensor([[3e38, 0.0, 0.0, 0.0]])
    flat = LastLayerLaplace(torch.zeros(3, 4), prior_precision=0.01).fit(ROWS[:0])
    with pytest.raises(ValueError, match=r"^eval_features must give results that are finite"):
        look_ahead(flat, ROWS, BATCHES, LABELS, far, None if truth is None else truth[:1], loss)
    with pytest.raises(ValueError, match=r"^eval_features must give results that are finite"):
        expected_error_reduction(flat, ROWS, far)


def test_an_evidence_that_overflows_raises() -> None:
    gaussian = LastLayerLaplace(draw.normal(3, 4), curvature="gaussian")
    with pytest.raises(ValueError, match=r"^features must give results that are finite in torch.float64"):
        gaussian.log_marginal_likelihood(1e200 * ROWS.double(), LABELS)


@pytest.mark.parametrize("name", [name for name in ACQUISITIONS if name not in UTILITIES])
def test_rows_that_overflow_raise_in_every_acquisition(name: str) -> None:
    for call in (lambda: select_batch(STEEP, FAR, 2, name), lambda: SequentialSelector(STEEP, FAR, name)):
        with pytest.raises(ValueError, match=r"^pool must give results that are finite in torch.float32"):
            call()


@pytest.mark.parametrize(("acquisition", "link"), [("variance", "plugin"), ("bald", "plugin"), ("bald", "mc")])
def test_a_pool_whose_utilities_overflow_is_named(acquisition: str, link: str) -> None:
    """Not the acquisition: it is one of our own, and the numbers of the pool are too large for it."""
    drawn = Draw(seed=2)
    model = LastLayerLaplace.fit_map(drawn.normal(30, 8).float(), torch.arange(30) % 3, 3, 1e-3)
    pool = 1e18 * drawn.normal(60, 8).float()

    def ask_and_tell() -> None:
        selector = SequentialSelector(model, pool, acquisition, link=link, generator=torch.Generator())
        for _ in range(5):
            selector.tell(selector.ask(), 0)

    def in_a_batch() -> None:
        labels = torch.zeros(60, dtype=torch.int64)
        select_batch(model, pool, 5, acquisition, labels, link=link, generator=torch.Generator())

    for call in (ask_and_tell, in_a_batch):
        with pytest.raises(ValueError, match=r"^pool must give results that are finite in torch.float32"):
            call()


def test_a_gamma_with_which_the_baselines_overflow_raises() -> None:
    with pytest.raises(ValueError, match=r"^gamma must leave the steps finite in torch.float32, got 1e\+300"):
        baselines.first_order(STEEP, ROWS, LABELS, 1e300)
    with pytest.raises(ValueError, match=r"^gamma must leave the weights of the samples finite, got 1e\+308"):
        baselines.monte_carlo(STEEP, ROWS, LABELS, ROWS, 1e308, 3)


def test_norms_that_overflow_raise() -> None:
    posterior, pool, *_ = make_problem()
    pool = pool.clone()
    pool[3, 3] = 1e300
    with pytest.raises(ValueError, match=r"^pool must give results that are finite"):
        select_batch(posterior, pool, 2, "gradient_norm", targets=None, update_every=2)


@pytest.mark.parametrize("step", ["newton", "line_search"])
def test_a_negative_covariance_raises_in_expected_error_reduction(step: str) -> None:
    posterior, pool, _, points, _ = make_problem()
    posterior.covariance.neg_()
    with pytest.raises(NotPSDError, match=r"^covariance is not positive semi-definite along (a )?row"):
        expected_error_reduction(posterior, pool, points, step=step)


def test_a_precision_that_overflows_leaves_the_posterior_as_it_was() -> None:
    posterior = LastLayerLaplace(draw.normal(3, 4).float(), curvature="gaussian").fit(ROWS)
    before = bits(posterior)
    with pytest.raises(ValueError, match=r"^features must give results that are finite in torch\.float32"):
        posterior.fit(1e20 * ROWS)
    assert bits(posterior) == before


@pytest.mark.parametrize("rows", [1e-40 * ROWS, 1e200 * ROWS.double()], ids=["too small", "too large"])
def test_features_that_no_scale_can_standardise_raise(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^features must give results that are finite"):
        LastLayerLaplace.fit_map(rows, LABELS, 3)


def test_weights_that_standardising_makes_overflow_raise() -> None:
    head = nn.utils.skip_init(nn.Linear, 4, 3)
    nn.init.constant_(head.weight, 1e10)
    nn.init.zeros_(head.bias)
    with pytest.raises(ValueError, match=r"^features must give results that are finite"):
        LastLayerLaplace.from_linear(head, 1e30 * ROWS, curvature="gaussian", standardize=True)


def test_features_with_which_the_fit_overflows_raise() -> None:
    with pytest.raises(ValueError, match=r"^features or prior_precision must be smaller"):
        LastLayerLaplace.fit_map(1e200 * ROWS.double(), LABELS, 3, standardize=False)


def test_a_huge_prior_precision_gives_tiny_weights() -> None:
    model = LastLayerLaplace.fit_map(ROWS.double(), LABELS, 3, prior_precision=1e300)
    assert 0.0 < float(model.mean.abs().max()) < 1e-299


def test_a_backward_pass_that_overflows_raises() -> None:
    model = LastLayerLaplace.fit_map(ROWS.double(), LABELS, 3)
    with pytest.raises(ValueError, match=r"^pool must give results that are finite"):
        select_batch(model, 1e100 * ROWS.double(), 3, "bait_forward_backward")
