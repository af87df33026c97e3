import sys

import pytest
import torch

from lapal_ext import likelihood, losses, ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Arguments, Draw
from tests.ops import exact_softmax
from tests.ops.dense_posterior import DensePosterior, loss_by_definition, softmax
from tests.ops.examples import example

op = ops.expected_lookahead
every_loss = pytest.mark.parametrize("kind", losses.EXPECTED_LOSSES)


@every_loss
@pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("curvature", likelihood.CURVATURES)
@pytest.mark.parametrize("C", [2, 5, 23])
def test_reference_is_dense_algebra(kind: str, gamma: float, curvature: str, C: int, draw: Draw) -> None:
    D, N, E = 7, 3, 4
    mean, covariance = draw.normal(C, D), draw.covariance(D)
    pool, points = draw.normal(N, D), draw.normal(E, D)
    lengths = likelihood.step_length(
        pool @ mean.T,
        ((pool @ covariance) * pool).sum(1),
        torch.zeros(N, dtype=torch.int64),
        gamma,
        "newton",
        curvature,
    )
    sums = op.reference(mean @ points.T, pool @ covariance @ points.T, lengths, softmax(pool @ mean.T), kind)
    wanted = []
    for phi in pool:
        total = 0.0
        for k, p in enumerate(softmax(mean @ phi)):
            posterior = DensePosterior(mean, covariance)
            posterior.absorb(phi, k, gamma, "newton", curvature)
            total += float(p) * sum(loss_by_definition(posterior.mean @ e, None, kind) for e in points)
        wanted.append(total)
    assert_exact(sums, torch.tensor(wanted, dtype=torch.float64))


def by_loops(args: Arguments, exact: bool = False) -> torch.Tensor:
    """Every candidate, label and point on its own, O(N E C^2)."""
    n_classes, n_eval = args["logits"].shape
    sums = []
    for column, length, p in zip(args["columns"], args["step_lengths"], args["probabilities"], strict=True):
        total = 0.0
        for k in range(n_classes):
            for e in range(n_eval):
                unit = torch.zeros(n_classes, dtype=torch.float64)
                unit[k] = 1.0
                logits = args["logits"][:, e] + length * column[e] * (unit - p)
                if exact:
                    total += float(p[k]) * exact_softmax.loss(logits.tolist(), 0, args["loss_kind"])
                else:
                    total += float(p[k]) * loss_by_definition(logits, None, args["loss_kind"])
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


@every_loss
@pytest.mark.parametrize("sizes", [{"C": 2, "E": 6}, {"C": 5, "E": 3}, {"C": 150, "E": 2, "N": 2}], ids=str)
@pytest.mark.parametrize("strength", [1.0, 30.0, 300.0])
def test_reference_is_loops(kind: str, sizes: dict[str, int], strength: float) -> None:
    """Up to |delta| of several hundred, where exponentials of delta itself would overflow."""
    args = example("expected_lookahead", **({"N": 4} | sizes)) | {"loss_kind": kind}
    args["columns"] *= strength
    assert_exact(op.reference(**args), by_loops(args))


@every_loss
@pytest.mark.parametrize("size", [80.0, 400.0])
def test_reference_is_decimal_arithmetic_for_extreme_logits(kind: str, size: float, draw: Draw) -> None:
    args = example("expected_lookahead", C=3, E=2, N=3) | {"loss_kind": kind}
    args["logits"] = size * (2.0 * draw.uniform(3, 2) - 1)
    args["columns"] *= 50
    value, wanted = op.reference(**args), by_loops(args, exact=True)
    torch.testing.assert_close(value, wanted, rtol=1e-11, atol=1e-300)


@pytest.mark.parametrize("gap", [30.0, 80.0, 300.0])
def test_certain_points_keep_their_relative_accuracy(gap: float) -> None:
    """One logit is far ahead before and after every label: 1 - p_max is far below the rounding of one."""
    args = example("expected_lookahead", C=4, E=1, N=2) | {"loss_kind": "expected_zero_one"}
    args["logits"] = torch.tensor([[0.0], [gap], [-3.0], [1.0]], dtype=torch.float64)
    value = op.reference(**args)
    torch.testing.assert_close(value, by_loops(args, exact=True), rtol=1e-11, atol=0)
    assert (value > 0).all()


@every_loss
@pytest.mark.parametrize("C", [2, 3, 10, 150, 1000])
@pytest.mark.parametrize("strength", [1.0, 30.0, 300.0])
def test_budget(kind: str, C: int, strength: float, dtype: torch.dtype, device: str) -> None:
    sizes = {"C": C, "E": 33 if C < 100 else 3, "N": 17 if C < 100 else 5}
    args = example("expected_lookahead", **sizes) | {"loss_kind": kind}
    args["columns"] *= strength
    sums = assert_within_budget(op, args, dtype, device=device).values["result 0"]
    assert sums.dtype == torch.float64
    assert sums.isfinite().all()


@every_loss
@pytest.mark.parametrize("size", [80.0, 400.0])
@pytest.mark.parametrize("C", [2, 13])
def test_budget_of_extreme_logits(kind: str, size: float, C: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    args = example("expected_lookahead", C=C, E=19, N=8) | {"loss_kind": kind}
    args["logits"] = size * (2 * draw.uniform(C, 19) - 1)
    args["columns"] *= 100
    sums = assert_within_budget(op, args, dtype, device=device, logit_size=size).values["result 0"]
    assert sums.isfinite().all()


@every_loss
@pytest.mark.parametrize(
    "delta",
    # On both sides of 40, where the formula changes. The references of the two largest take seconds.
    [1.0, 39.0, 41.0, 60.0, *(pytest.param(delta, marks=pytest.mark.slow) for delta in (100.0, 400.0))],
)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("p_top", [0.4, 1 - 1e-6])
def test_budget_of_large_shifts_where_one_class_dominates(
    kind: str, delta: float, sign: int, p_top: float, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    """One class dominates for the candidate and at the points; some points of a block move far, others hardly."""
    C, E = 6, 35
    args = example("expected_lookahead", C=C, E=E, N=2) | {"loss_kind": kind}
    args["logits"][2] += 12.0
    args["step_lengths"] = torch.full((2,), sign * delta, dtype=torch.float64)
    args["columns"] = torch.stack([torch.ones(E, dtype=torch.float64), draw.uniform(E)])
    args["probabilities"] = torch.full((2, C), (1 - p_top) / (C - 1), dtype=torch.float64)
    args["probabilities"][0, 2] = args["probabilities"][1, 4] = p_top
    assert_exact(op.reference(**args), by_loops(args, exact=True))
    sums = assert_within_budget(op, args, dtype, device=device, each=True, logit_size=delta).values["result 0"]
    assert (sums >= 0).all()  # the smallest underflow in float32


@every_loss
def test_tied_logits(kind: str, dtype: torch.dtype, device: str) -> None:
    """Winner and runner-up equal, and all classes equal: no gap to divide by."""
    args = example("expected_lookahead", C=4, E=2, N=3) | {"loss_kind": kind}
    args["logits"] = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    args["columns"][0] = 0.0
    assert_exact(op.reference(**args), by_loops(args))
    assert_within_budget(op, args, dtype, device=device)


@every_loss
def test_single_class_has_no_loss(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("expected_lookahead", C=1) | {"loss_kind": kind}
    assert not assert_within_budget(op, args, dtype, device=device).values["result 0"].any()


@every_loss
def test_step_zero_is_the_loss_today(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("expected_lookahead") | {"loss_kind": kind}
    args["step_lengths"] *= 0
    today = sum(loss_by_definition(z, None, kind) for z in args["logits"].T)
    sums = assert_within_budget(op, args, dtype, device=device).values["result 0"].cpu()
    torch.testing.assert_close(sums, torch.full_like(sums, today), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tile", [1, 120])
def test_reference_does_not_depend_on_its_tile(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    args = example("expected_lookahead")
    whole = op.reference(**args)
    monkeypatch.setattr(sys.modules["lapal_ext.ops.expected_lookahead"], "_TILE", tile)
    assert_exact(op.reference(**args), whole, 1e-14)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@every_loss
def test_what_is_not_finite_stays_with_its_candidate(kind: str, value: float, dtype: torch.dtype, device: str) -> None:
    """``expected_error_reduction`` relies on it, and does not check the columns itself."""
    args = example("expected_lookahead", N=3) | {"loss_kind": kind}
    args["columns"][1, 2] = value
    sums = assert_within_budget(op, args, dtype, device=device).values["result 0"]
    assert sums.isnan().tolist() == [False, True, False]
