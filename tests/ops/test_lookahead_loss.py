import sys

import pytest
import torch
from torch import Tensor

from lapal_ext import losses, ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops.dense_posterior import DensePosterior, loss_by_definition
from tests.ops.examples import example

op = ops.lookahead_loss
KAPPA = 0.4
NO_VARIANCE = {"triangle": None, "beta": None, "variance": None}
every_loss = pytest.mark.parametrize("kind", losses.LOSSES)
every_link = pytest.mark.parametrize("link", ["plugin", "mean_field"])


@every_loss
@every_link
@pytest.mark.parametrize(
    ("step", "curvature", "gamma"), [("line_search", "categorical", 10.0), ("newton", "gaussian", 1.0)]
)
def test_reference_is_dense_algebra(kind: str, link: str, step: str, curvature: str, gamma: float, draw: Draw) -> None:
    C, D, N, E, M, b = 4, 8, 6, 5, 3, 3
    mean, covariance = draw.normal(C, D), draw.covariance(D)
    pool, points = draw.normal(N, D), draw.normal(E, D)
    batches, truth = draw.integers(N, M, b), draw.integers(C, E)
    batches[0, 1] = batches[0, 0]  # a row twice in a batch
    labels = draw.integers(C, M, b)
    rows = pool[batches]
    H, T, beta, _ = ops.update_coefficients.reference(
        rows @ covariance @ rows.mT, rows @ mean.T, labels, gamma, step, curvature
    )
    variance = torch.stack([phi @ covariance @ phi for phi in points])
    extras = (T, beta, variance) if link == "mean_field" else (None, None, None)
    sums = op.reference(mean @ points.T, pool @ covariance @ points.T, batches, H, *extras, truth, kind, KAPPA)
    wanted = []
    for m in range(M):
        posterior = DensePosterior(mean, covariance)
        for phi, y in zip(rows[m], labels[m], strict=True):
            posterior.absorb(phi, y, gamma, step, curvature)
        total = 0.0
        for phi, y in zip(points, truth, strict=True):
            logits = posterior.mean @ phi
            if link == "mean_field":
                logits = logits / (1 + KAPPA * posterior.variance(phi)) ** 0.5
            total += loss_by_definition(logits, y, kind)
        wanted.append(total)
    assert_exact(sums, torch.tensor(wanted, dtype=torch.float64))


def by_loops(args: dict, m: int, e: int) -> Tensor:
    """Logits after hypothesis m at point e, straight from the docstring."""
    column = args["columns"][args["batches"][m], e]
    logits = args["logits"][:, e] + sum(c * h for c, h in zip(column, args["coefficients"][m], strict=True))
    if args["variance"] is None:
        return logits
    z = torch.linalg.inv(args["triangle"][m]) @ column
    variance = float(args["variance"][e] - sum(args["beta"][m] * z * z))
    return logits / (1 + args["kappa"] * max(variance, 0.0)) ** 0.5


@every_loss
@every_link
@pytest.mark.parametrize("C", [2, 3, 150])
def test_reference_is_loops(kind: str, link: str, C: int) -> None:
    args = example("lookahead_loss", C=C, E=5) | {"loss_kind": kind} | (NO_VARIANCE if link == "plugin" else {})
    wanted = [
        sum(loss_by_definition(by_loops(args, m, e), args["targets"][e], kind) for e in range(5)) for m in range(3)
    ]
    assert_exact(op.reference(**args), torch.tensor(wanted, dtype=torch.float64))


SIZES = [
    {"C": 2, "E": 1, "b": 1, "M": 1},
    {"C": 3, "E": 67, "b": 2, "M": 5},
    {"C": 9, "E": 35, "b": 0, "M": 2},  # batches without rows
    {"C": 10, "E": 129, "b": 10, "M": 19},
    {"C": 37, "E": 33, "b": 7, "M": 3},
    {"C": 150, "E": 21, "b": 17, "M": 2},
    {"C": 1000, "E": 9, "b": 3, "M": 2},
]


@every_loss
@every_link
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_budget(kind: str, link: str, sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    args = example("lookahead_loss", **sizes) | {"loss_kind": kind} | (NO_VARIANCE if link == "plugin" else {})
    sums = assert_within_budget(op, args, dtype, device=device, each=True).values["result 0"]
    assert sums.dtype == torch.float64


@every_loss
@pytest.mark.parametrize("C", [2, 5, 20])
def test_tied_logits(kind: str, C: int, dtype: torch.dtype, device: str) -> None:
    """All classes tie, or the first and the last, or two others: the first of those that tie counts."""
    args = example("lookahead_loss", C=C, E=4) | {"loss_kind": kind}
    args["coefficients"] *= 0.0
    args["logits"][:, 0] = 1.0
    args["logits"][[0, -1], 1] = 7.0
    args["logits"][[C // 2, -1], 2] = 7.0
    args["targets"] = torch.tensor([0, C - 1, C // 2, 0])
    assert_within_budget(op, args, dtype, device=device, each=True)


@every_loss
@every_link
@pytest.mark.parametrize("size", [80.0, 400.0])
@pytest.mark.parametrize("C", [2, 12])
def test_budget_of_extreme_logits(
    kind: str, link: str, size: float, C: int, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    args = example("lookahead_loss", C=C, E=45) | {"loss_kind": kind} | (NO_VARIANCE if link == "plugin" else {})
    args["logits"] = size * (2 * draw.uniform(C, 45) - 1)
    sums = assert_within_budget(op, args, dtype, device=device, logit_size=size).values["result 0"]
    assert sums.isfinite().all()


@every_loss
@every_link
@pytest.mark.parametrize("size", [20.0, 60.0, 400.0])
@pytest.mark.parametrize("E", [16, 45])
def test_budget_of_hypotheses_that_move_far(
    kind: str, link: str, size: float, E: int, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    """The largest logit of one or all points moves far: an exponential relative to the old one would overflow."""
    args = example("lookahead_loss", C=7, E=E, M=4) | {"loss_kind": kind} | (NO_VARIANCE if link == "plugin" else {})
    reach = draw.uniform(E)  # of the first hypothesis; the second moves one point, the third all of them, down too
    args["columns"][args["batches"][0, 0]] = size * reach
    args["columns"][args["batches"][1, 0]] = size * (torch.arange(E) == E // 2)
    args["columns"][args["batches"][2, 0]] = size
    args["coefficients"][2, 0] = -1.0 - 0.1 * torch.arange(7)
    sums = assert_within_budget(op, args, dtype, device=device, logit_size=size).values["result 0"]
    assert sums.isfinite().all()


@pytest.mark.parametrize("kind", ["expected_zero_one", "expected_cross_entropy", "cross_entropy", "brier"])
@pytest.mark.parametrize("gap", [30.0, 80.0])
def test_confident_points_keep_their_relative_accuracy(kind: str, gap: float, dtype: torch.dtype, device: str) -> None:
    """1 - p_max below 1e-30: a difference of nearly equal numbers would be zero."""
    args = example("lookahead_loss", C=3, E=1) | NO_VARIANCE | {"loss_kind": kind}
    args["logits"] = torch.tensor([[gap], [0.0], [-1.0]], dtype=torch.float64)
    args["coefficients"] *= 0.01
    args["targets"] = torch.zeros(1, dtype=torch.int64)
    if kind == "brier":  # of order (1 - p)^2: float32 keeps an absolute accuracy only
        sums = op(**cast(op, args, dtype, device=device))
        assert (sums.abs() < 1e-6).all()
        return
    sums = assert_within_budget(op, args, dtype, device=device, each=True).values["result 0"]
    assert (sums > 0).all()


def test_tiles_of_evaluation_points_add(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("lookahead_loss", E=101), dtype, device=device)
    parts = [
        op(**args | {k: args[k][..., tile].contiguous() for k in ("logits", "columns", "variance", "targets")})
        for tile in (slice(0, 1), slice(1, 34), slice(34, 101))
    ]
    # The float64 sums add up to the last bits; a matrix product may round the logits of a tile differently.
    torch.testing.assert_close(sum(parts), op(**args), rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


@pytest.mark.parametrize("tile", [1, 60, 200])
def test_reference_does_not_depend_on_its_tile(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = example("lookahead_loss", M=7)
    whole = op.reference(**args)
    monkeypatch.setattr(sys.modules["lapal_ext.ops.lookahead_loss"], "_TILE", tile)
    assert_exact(op.reference(**args), whole, 1e-14)


def test_no_movement_is_the_loss_today(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("lookahead_loss"), dtype, device=device) | NO_VARIANCE
    sums = op(**args | {"coefficients": torch.zeros_like(args["coefficients"])})
    today = torch.nn.functional.cross_entropy(args["logits"].T.double(), args["targets"], reduction="sum")
    torch.testing.assert_close(sums, today.expand(3), rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("wrong", [-1, 13])
def test_rows_outside_the_columns_never_pass(wrong: int, device: str, kernels_raise: bool) -> None:
    args = cast(op, example("lookahead_loss"), torch.float32, device=device)
    args["batches"][1, 2] = wrong
    if not kernels_raise:
        assert op(**args).isnan().tolist() == [False, True, False]
        return
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        op(**args)


@pytest.mark.parametrize("wrong", [-1, 5])
@pytest.mark.parametrize("kind", ["cross_entropy", "zero_one", "brier"])
def test_labels_outside_the_classes_never_pass(wrong: int, kind: str, device: str, kernels_raise: bool) -> None:
    args = cast(op, example("lookahead_loss"), torch.float32, device=device) | {"loss_kind": kind}
    args["targets"][3] = wrong
    if not kernels_raise:
        assert op(**args).isnan().all()
        return
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        op(**args)


@pytest.mark.parametrize("kind", ["cross_entropy", "zero_one", "brier"])
def test_targets_are_needed(kind: str, device: str) -> None:
    args = cast(op, example("lookahead_loss"), torch.float32, device=device)
    with pytest.raises(ValueError, match=f"targets must be given for loss '{kind}'"):
        op(**args | {"loss_kind": kind, "targets": None})


@pytest.mark.parametrize("absent", ["triangle", "beta", "variance"])
def test_mean_field_needs_all_of_its_arguments(absent: str, device: str) -> None:
    """Two of the three must not fall back to the plugin link in silence."""
    args = cast(op, example("lookahead_loss"), torch.float32, device=device)
    with pytest.raises(ValueError, match=absent):
        op(**args | {absent: None})


def test_not_a_number_stays_in_its_own_hypothesis(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("lookahead_loss"), dtype, device=device)
    args["coefficients"][1, 0, 2] = float("nan")
    assert op(**args).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("kind", [kind for kind in losses.LOSSES if kind != "zero_one"])
def test_not_a_number_is_never_hidden(kind: str, dtype: torch.dtype, device: str) -> None:
    """A NaN logit must show in every loss that depends on the probabilities."""
    args = cast(op, example("lookahead_loss"), dtype, device=device) | {"loss_kind": kind}
    args["logits"][2, 3] = float("nan")
    assert op(**args).isnan().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("mean_field", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in losses.LOSSES if kind != "zero_one"])
def test_columns_that_are_not_finite_show_in_their_hypotheses(
    kind: str, mean_field: bool, value: float, dtype: torch.dtype, device: str
) -> None:
    """``look_ahead`` relies on it, and checks the columns itself for the zero-one loss, which hides them."""
    args = cast(op, example("lookahead_loss", N=9, M=3, b=3), dtype, device=device) | {"loss_kind": kind}
    args |= {} if mean_field else NO_VARIANCE
    args["batches"] = torch.arange(9, device=device).view(3, 3)
    last = args["columns"].shape[1] - 1
    for point in (0, last // 2, last):
        columns = args["columns"].clone()
        columns[4, point] = value
        assert op(**args | {"columns": columns}).isfinite().tolist() == [True, False, True]
