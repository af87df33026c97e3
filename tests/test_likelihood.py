import math

import pytest
import torch
from torch import Tensor

from lapal_ext import likelihood, losses, utilities
from tests.budget import assert_exact
from tests.draws import Draw
from tests.ops import exact_softmax
from tests.ops.dense_posterior import check_line_search, curvature_weight, one_hot, softmax

CLASSES = [2, 3, 10, 150]
GAPS = torch.linspace(20, 80, 121, dtype=torch.float64)  # 1 - p_max from 1e-9 to 1e-35


def in_order(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def confident_rows(dtype: torch.dtype) -> Tensor:
    """One class leads by each gap; a third class is far below."""
    return torch.stack([torch.zeros_like(GAPS), GAPS, -GAPS], 1).to(dtype)


# Utilities


@pytest.mark.parametrize("C", CLASSES)
@pytest.mark.parametrize("kind", ["margin", "entropy", "least_confident", "gradient_norm"])
def test_utility_is_its_definition(kind: str, C: int, draw: Draw) -> None:
    logits, scale = 3 * draw.normal(5, C), draw.uniform(5)
    p = softmax(logits)
    first, second = p.sort(descending=True).values[:, :2].unbind(1)
    unit = torch.stack([one_hot(int(row.argmax()), C) for row in p])
    wanted = {
        "margin": 1 - (first - second),
        "entropy": -(p * p.log()).sum(1),
        "least_confident": 1 - first,
        "gradient_norm": (unit - p).norm(dim=1) * scale,
    }
    assert_exact(utilities.utility(logits, None, scale, kind), wanted[kind])


@pytest.mark.parametrize("kind", ["margin", "entropy", "least_confident", "gradient_norm"])
@pytest.mark.parametrize("size", [1.0, 80.0, 400.0])
def test_utility_in_decimal_arithmetic(kind: str, size: float, draw: Draw) -> None:
    logits = size * (2 * draw.uniform(6, 4) - 1)
    wanted = in_order([exact_softmax.utility(row.tolist(), kind) for row in logits])
    value = utilities.utility(logits, None, torch.ones(6, dtype=torch.float64), kind)
    torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("kind", ["margin", "entropy", "least_confident", "gradient_norm"])
def test_confident_rows_rank_correctly(kind: str, dtype: torch.dtype) -> None:
    rows = confident_rows(dtype)
    value = utilities.utility(rows, None, torch.ones(len(rows), dtype=dtype), kind).double()
    wanted = in_order([exact_softmax.utility(row.tolist(), kind) for row in rows.double()])
    torch.testing.assert_close(value, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=0)
    assert (value.diff() < 0).all()


def test_ties_have_margin_one_and_the_entropy_of_equal_classes() -> None:
    logits = torch.tensor([[2.0, 2.0, -50.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert utilities.utility(logits, None, None, "margin").tolist() == pytest.approx([1.0, 1.0])
    assert utilities.utility(logits, None, None, "entropy").tolist() == pytest.approx([math.log(2), math.log(3)])


def test_variance_is_a_copy() -> None:
    variance = torch.ones(3)
    value = utilities.utility(torch.zeros(3, 2), variance, None, "variance")
    assert torch.equal(value, variance)
    assert value is not variance


@pytest.mark.parametrize(("kind", "needs"), [("variance", "variance"), ("gradient_norm", "scale")])
def test_a_utility_without_its_argument_raises(kind: str, needs: str) -> None:
    with pytest.raises(ValueError, match=f"^{needs} must be given for utility '{kind}', got None"):
        utilities.utility(torch.zeros(3, 2), None, None, kind)


# Losses


@pytest.mark.parametrize("C", CLASSES)
@pytest.mark.parametrize("kind", losses.LOSSES)
def test_loss_is_its_definition(kind: str, C: int, draw: Draw) -> None:
    logits, targets = 3 * draw.normal(9, C), draw.integers(C, 9)
    p = softmax(logits)
    unit = torch.stack([one_hot(y, C) for y in targets])
    wanted = {
        "cross_entropy": -(unit * p.log()).sum(1),
        "zero_one": (p.argmax(1) != targets).double(),
        "brier": (p - unit).square().sum(1),
        "expected_cross_entropy": -(p * p.log()).sum(1),
        "expected_zero_one": 1 - p.amax(1),
    }
    assert_exact(losses.loss(logits, targets, kind), wanted[kind])


@pytest.mark.parametrize("kind", losses.LOSSES)
@pytest.mark.parametrize("size", [80.0, 400.0])
def test_loss_in_decimal_arithmetic(kind: str, size: float, draw: Draw) -> None:
    logits, targets = size * (2 * draw.uniform(8, 4) - 1), draw.integers(4, 8)
    wanted = in_order(
        [exact_softmax.loss(row.tolist(), y, kind) for row, y in zip(logits, targets.tolist(), strict=True)]
    )
    # Brier is a sum of squares near 0 or 2, computed from terms near one: only its absolute error is small.
    absolute = 1e-15 if kind == "brier" else 1e-300
    torch.testing.assert_close(losses.loss(logits, targets, kind), wanted, rtol=1e-11, atol=absolute)


@pytest.mark.parametrize("kind", ["cross_entropy", "expected_cross_entropy", "expected_zero_one"])
def test_losses_of_confident_rows(kind: str, dtype: torch.dtype) -> None:
    rows = confident_rows(dtype)
    value = losses.loss(rows, torch.ones(len(rows), dtype=torch.int64), kind).double()
    wanted = in_order([exact_softmax.loss(row.tolist(), 1, kind) for row in rows.double()])
    torch.testing.assert_close(value, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=0)
    assert (value.diff() < 0).all()


def test_zero_one_predicts_the_first_of_tied_classes() -> None:
    logits = torch.zeros(2, 3)
    assert losses.loss(logits, torch.tensor([0, 1]), "zero_one").tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kind", ["cross_entropy", "zero_one", "brier"])
def test_a_loss_without_targets_raises(kind: str) -> None:
    with pytest.raises(ValueError, match=f"loss '{kind}' needs targets"):
        losses.loss(torch.zeros(2, 3), None, kind)


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_leading_dimensions_broadcast(kind: str, draw: Draw) -> None:
    logits, targets = draw.normal(4, 6, 3), draw.integers(3, 6)
    value = losses.loss(logits, targets, kind)
    for m in range(4):
        assert_exact(value[m], losses.loss(logits[m], targets, kind))


# Links, curvature, residual


def test_mean_field(draw: Draw) -> None:
    logits, variance = draw.normal(5, 3), draw.uniform(5)
    variance[2] = -1.0
    wanted = [row / math.sqrt(1 + 0.7 * max(float(v), 0.0)) for row, v in zip(logits, variance, strict=True)]
    assert_exact(likelihood.mean_field(logits, variance, 0.7), torch.stack(wanted))
    assert_exact(likelihood.mean_field(logits, variance), likelihood.mean_field(logits, variance, math.pi / 8))


@pytest.mark.parametrize("C", CLASSES)
def test_curvature(C: int, draw: Draw) -> None:
    logits = 3 * draw.normal(6, C)
    wanted = in_order([curvature_weight(row, "categorical") for row in logits])
    assert_exact(likelihood.curvature_weight(logits, "categorical"), wanted)
    assert likelihood.curvature_weight(logits, "gaussian").tolist() == [1.0] * 6


def test_curvature_of_confident_rows(dtype: torch.dtype) -> None:
    rows = confident_rows(dtype)
    wanted = in_order([curvature_weight(row, "categorical") for row in rows.double()])
    value = likelihood.curvature_weight(rows, "categorical").double()
    torch.testing.assert_close(value, wanted, rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=0)


def test_residual(draw: Draw) -> None:
    logits, targets = draw.normal(5, 4), draw.integers(4, 5)
    wanted = [one_hot(y, 4) - softmax(row) for row, y in zip(logits, targets, strict=True)]
    assert_exact(likelihood.residual(logits, targets), torch.stack(wanted))


# Step lengths


@pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("curvature", likelihood.CURVATURES)
def test_newton_step(gamma: float, curvature: str, draw: Draw) -> None:
    logits, variance, targets = draw.normal(6, 4), draw.uniform(6), draw.integers(4, 6)
    wanted = [gamma / (1 + curvature_weight(z, curvature) * float(v)) for z, v in zip(logits, variance, strict=True)]
    value = likelihood.step_length(logits, variance, targets, gamma, "newton", curvature)
    assert_exact(value, in_order(wanted))


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("C", CLASSES)
def test_line_search_finds_the_root(gamma: float, C: int, draw: Draw) -> None:
    """Mild rows to confidently wrong ones: variance 1e4, a gap of 100."""
    logits, variance, targets = draw.normal(24, C), 10 ** (8 * draw.uniform(24) - 4), draw.integers(C, 24)
    wrong = (targets + 1) % C
    gaps = in_order([0.0, 5.0, 40.0, 100.0]).repeat(6)
    logits[torch.arange(24), wrong] += gaps
    variance[-4:] = 1e4
    value = likelihood.step_length(logits, variance, targets, gamma, "line_search", "categorical").tolist()
    for a, z, v, y in zip(value, logits, variance.tolist(), targets.tolist(), strict=True):
        check_line_search(a, z, v, y, gamma)


def test_line_search_without_variance_takes_the_whole_step(draw: Draw) -> None:
    """v = 0: the slope is a |r|^2 / gamma - |r|^2, whose root is gamma."""
    logits, targets = draw.normal(5, 3), draw.integers(3, 5)
    value = likelihood.step_length(
        logits, torch.zeros(5, dtype=torch.float64), targets, 2.0, "line_search", "categorical"
    )
    assert_exact(value, torch.full((5,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("step", likelihood.STEPS)
def test_gamma_zero_gives_zero(step: str, draw: Draw) -> None:
    value = likelihood.step_length(draw.normal(5, 3), draw.uniform(5), draw.integers(3, 5), 0.0, step, "categorical")
    assert value.tolist() == [0.0] * 5


@pytest.mark.parametrize("step", likelihood.STEPS)
def test_no_residual_is_finite(step: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[900.0, 0.0, 0.0]], dtype=dtype)
    target, variance = torch.tensor([0]), torch.ones(1, dtype=dtype)
    assert not likelihood.residual(logits, target).any()
    value = likelihood.step_length(logits, variance, target, 1.0, step, "categorical")
    assert 0 <= float(value) <= 1


def test_line_search_of_not_a_number_is_not_a_number(draw: Draw) -> None:
    logits, variance, targets = draw.normal(4, 3), draw.uniform(4), draw.integers(3, 4)
    logits[1, 0] = variance[2] = float("nan")
    value = likelihood.step_length(logits, variance, targets, 1.0, "line_search", "categorical")
    assert value.isnan().tolist() == [False, True, True, False]


def test_line_search_never_overshoots_where_newton_does() -> None:
    """Confidently wrong: s vanishes, newton takes a = gamma and moves the logits by v = 1e4."""
    logits = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    variance, target = in_order([1e4]), torch.tensor([1])
    r = likelihood.residual(logits, target)
    moved = {
        step: logits
        + likelihood.step_length(logits, variance, target, 1.0, step, "categorical")[:, None] * variance[:, None] * r
        for step in likelihood.STEPS
    }
    assert float(moved["newton"][0, 1] - moved["newton"][0, 0]) > 1e4
    assert 0 < float(moved["line_search"][0, 1] - moved["line_search"][0, 0]) < 20
