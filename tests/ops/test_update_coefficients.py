import math

import pytest
import torch
from torch import Tensor

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Arguments, Draw
from tests.layouts import bytes_of
from tests.ops.dense_posterior import DensePosterior, check_line_search, residual
from tests.ops.examples import example

op = ops.update_coefficients
RULES = [(s, c) for s in ("line_search", "newton") for c in ("categorical", "gaussian")]
every_rule = pytest.mark.parametrize(("step", "curvature"), RULES)
every_gamma = pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0])
SIZES = [{"C": 2, "b": 5, "M": 2}, {"C": 10, "b": 1, "M": 1}, {"C": 150, "b": 3, "M": 1}]


def solve_unit_lower(triangle: Tensor, rows: Tensor) -> Tensor:
    """U of T U = rows, by substitution."""
    solved: list[Tensor] = []
    for t in range(len(rows)):
        solved.append(rows[t] - sum(triangle[t, j] * solved[j] for j in range(t)))
    return torch.stack(solved)


@every_rule
@every_gamma
@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: f"C{s['C']}")
def test_reference_is_dense_algebra(step: str, curvature: str, gamma: float, sizes: dict[str, int], draw: Draw) -> None:
    C, b, M, D = sizes["C"], sizes["b"], sizes["M"], 9
    mean, covariance, rows = draw.normal(C, D) / 2, draw.covariance(D), draw.normal(M, b, D)
    targets = draw.integers(C, M, b)
    H, T, beta, weights = op.reference(rows @ covariance @ rows.mT, rows @ mean.T, targets, gamma, step, curvature)
    for m in range(M):
        posterior = DensePosterior(mean, covariance)
        entered = [posterior.absorb(phi, y, gamma, step, curvature) for phi, y in zip(rows[m], targets[m], strict=True)]
        columns = rows[m] @ covariance
        U = solve_unit_lower(T[m], columns)
        assert torch.equal(T[m].triu(), torch.eye(b, dtype=torch.float64))
        assert_exact(mean + H[m].T @ columns, posterior.mean)
        assert_exact(covariance - U.T @ torch.diag(beta[m]) @ U, posterior.covariance)
        assert_exact(weights[m], torch.tensor(entered, dtype=torch.float64))
        point = draw.normal(D)
        c = columns @ point
        z = solve_unit_lower(T[m], c[:, None])[:, 0]
        assert_exact(mean @ point + c @ H[m], posterior.mean @ point)
        v = point @ covariance @ point - (beta[m] * z * z).sum()
        assert math.isclose(v, posterior.variance(point), rel_tol=1e-11)


@every_rule
@every_gamma
@pytest.mark.parametrize("sizes", [*SIZES, {"C": 3, "b": 17, "M": 5}, {"C": 1000, "b": 2, "M": 3}], ids=str)
def test_budget(
    step: str, curvature: str, gamma: float, sizes: dict[str, int], dtype: torch.dtype, device: str
) -> None:
    if step == "newton" and curvature == "categorical" and gamma > 1:
        # A step that overshoots makes s vanish, the next overshoots further, and each multiplies the rounding error
        # of the one before. So float32 and float64 diverge, and no budget applies. A single step does not do this.
        sizes = sizes | {"b": 1}
    args = example("update_coefficients", **sizes) | {"gamma": gamma, "step": step, "curvature": curvature}
    assert_within_budget(op, args, dtype, device=device)


@every_rule
@pytest.mark.parametrize("size", [80.0, 400.0])
@pytest.mark.parametrize("C", [2, 37])
def test_budget_of_extreme_logits(
    step: str, curvature: str, size: float, C: int, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    args = example("update_coefficients", C=C, b=3, M=8) | {"step": step, "curvature": curvature}
    args["logits"] = size * (2.0 * draw.integers(2, 8, 3, C) - 1)
    actual = assert_within_budget(op, args, dtype, device=device)
    assert all(value.isfinite().all() for value in actual.values.values())


@every_rule
def test_budget_of_duplicates_in_a_batch(
    step: str, curvature: str, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    rows = draw.normal(1, 6)[None].expand(2, 5, 6)
    args = example("update_coefficients", b=5, M=2) | {
        "gram": rows @ rows.mT,
        "step": step,
        "curvature": curvature,
    }
    actual = assert_within_budget(op, args, dtype, device=device)
    assert all(value.isfinite().all() for value in actual.values.values())


def test_upper_triangle_is_not_read(dtype: torch.dtype, device: str) -> None:
    args = example("update_coefficients")
    upper = torch.ones_like(args["gram"], dtype=torch.bool).triu(1)
    args["gram"] = args["gram"].masked_fill(upper, float("nan"))
    actual = assert_within_budget(op, args, dtype, device=device)
    assert all(value.isfinite().all() for value in actual.values.values())


@every_rule
def test_gamma_zero_moves_nothing(step: str, curvature: str, dtype: torch.dtype, device: str) -> None:
    args = example("update_coefficients") | {"gamma": 0.0, "step": step, "curvature": curvature}
    H, _, beta, _ = assert_within_budget(op, args, dtype, device=device).values.values()
    assert torch.equal(H, torch.zeros_like(H))
    assert (beta > 0).all()


@every_rule
def test_no_residual_is_finite(step: str, curvature: str, dtype: torch.dtype, device: str) -> None:
    """p_y = 1 exactly, so r = 0: the line search must not divide 0 by 0."""
    args = example("update_coefficients") | {"step": step, "curvature": curvature}
    args["logits"] = 900.0 * torch.nn.functional.one_hot(args["targets"], 5).double()
    values = assert_within_budget(op, args, dtype, device=device).values
    assert all(value.isfinite().all() for value in values.values())
    assert not values["result 0"].any()


@every_rule
def test_a_single_class_moves_nothing(step: str, curvature: str, dtype: torch.dtype, device: str) -> None:
    args = example("update_coefficients", C=1) | {"step": step, "curvature": curvature}
    H = assert_within_budget(op, args, dtype, device=device).values["result 0"]
    assert not H.any()


def test_a_row_of_zeros_moves_nothing(dtype: torch.dtype, device: str) -> None:
    args = example("update_coefficients")
    args["gram"][1, 2, :] = args["gram"][1, :, 2] = 0.0
    H, T, beta, weights = assert_within_budget(op, args, dtype, device=device).values.values()
    assert torch.equal(T[1, 2], torch.eye(4, dtype=dtype, device=device)[2])
    assert torch.equal(beta[1, 2], weights[1, 2])
    assert H.isfinite().all()


def not_psd(draw: Draw) -> Arguments:
    """Three hypotheses; in the second one, rows 0 and 1 correlate by more than one: v = 1 - 4 / 2."""
    gram = torch.eye(3, dtype=torch.float64).expand(3, 3, 3).clone()
    gram[1, 1, 0] = gram[1, 0, 1] = 2.0
    return {
        "gram": gram,
        "logits": draw.normal(3, 3, 4),
        "targets": draw.integers(4, 3, 3),
        "gamma": 1.0,
        "step": "newton",
        "curvature": "gaussian",
    }


@pytest.mark.parametrize("step", ["newton", "line_search"])
def test_beta_is_nan_from_the_faulty_observation_on(step: str, dtype: torch.dtype, device: str, draw: Draw) -> None:
    beta = assert_within_budget(op, not_psd(draw) | {"step": step}, dtype, device=device).values["result 2"]
    assert beta.isnan().tolist() == [[False] * 3, [False, True, True], [False] * 3]


@pytest.mark.parametrize("diagonal", [-0.5, -2.0])
def test_negative_variance_from_the_start_is_nan(diagonal: float, dtype: torch.dtype, device: str, draw: Draw) -> None:
    """-0.5 leaves 1 + s v positive, and is refused all the same."""
    args = not_psd(draw)
    args["gram"][0, 0, 0] = diagonal
    beta = assert_within_budget(op, args, dtype, device=device).values["result 2"]
    assert beta[0].isnan().all()
    assert not beta[2].isnan().any()


@pytest.mark.parametrize(("overshoot", "faulty"), [(10, False), (50, False), (80, True), (1000, True)])
def test_slack_is_64_units_of_rounding(
    overshoot: float, faulty: bool, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    """v = -overshoot eps after one observation: rounding up to 64 eps, an error beyond."""
    args = not_psd(draw)
    eps = torch.finfo(dtype).eps
    args["gram"][1, 1, 0] = args["gram"][1, 0, 1] = math.sqrt(2 * (1 + overshoot * eps))
    beta = assert_within_budget(op, args, dtype, device=device).values["result 2"]
    assert beta[1].isnan().tolist() == [False, faulty, faulty]


def test_not_a_number_stays_in_its_own_hypothesis(dtype: torch.dtype, device: str) -> None:
    args = example("update_coefficients")
    args["logits"][1, 2, 0] = float("nan")
    H, _, beta, _ = assert_within_budget(op, args, dtype, device=device).values.values()
    assert H[1].isnan().any()
    assert beta[1, 2:].isnan().all()
    assert not H[[0, 2]].isnan().any()


@pytest.mark.parametrize("wrong", [-1, 5])
def test_labels_outside_the_classes_never_pass(wrong: int, device: str, kernels_raise: bool) -> None:
    args = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in example("update_coefficients").items()}
    args["targets"][1, 2] = wrong
    before = bytes_of(args["gram"])
    if not kernels_raise:
        H, _, beta, _ = op(**args)
        assert beta.isnan().tolist() == [[False] * 4, [False, False, True, True], [False] * 4]
        assert H.isnan().any((1, 2)).tolist() == [False, True, False]
        return
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        op(**args)
    assert torch.equal(bytes_of(args["gram"]), before)


def search_rows(draw: Draw, C: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, C], variances [n] and labels [n], from mild rows to confidently wrong and confidently right ones."""
    logits, variances, labels = [], [], []
    for variance in (1e-6, 0.3, 4.0, 1e4):
        for gap in (0.0, 1.0, 20.0, 100.0, -5.0, -20.0, -38.0, -100.0):
            row = draw.normal(C)
            row[0] += gap  # the label is class 1: a positive gap is confidently wrong
            logits.append(row), variances.append(variance), labels.append(1)
    return torch.stack(logits), torch.tensor(variances, dtype=torch.float64), torch.tensor(labels)


@every_gamma
@pytest.mark.parametrize("C", [2, 3, 150])
def test_line_search_is_a_root(gamma: float, C: int, draw: Draw, device: str) -> None:
    logits, variances, labels = search_rows(draw, C)
    H = op(
        variances[:, None, None].to(device),
        logits[:, None].to(device),
        labels[:, None].to(device),
        gamma,
        "line_search",
        "categorical",
    )[0].cpu()
    for z, v, y, h in zip(logits, variances.tolist(), labels.tolist(), H[:, 0], strict=True):
        check_line_search(float(h @ residual(z, y)) / float(residual(z, y).square().sum()), z, v, y, gamma)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0, 200.0])
@pytest.mark.parametrize("C", [2, 5, 11])
def test_line_search_does_not_cycle(gamma: float, C: int, draw: Draw, device: str) -> None:
    """On several in a thousand of such rows, a Newton iteration with no more than a bracket never ends."""
    n = 4000
    logits = draw.normal(n, C) * 10 ** (2.5 * draw.uniform(n, 1) - 0.5)
    variances, labels = 10 ** (10 * draw.uniform(n) - 4), draw.integers(C, n)
    r = torch.nn.functional.one_hot(labels, C) - logits.softmax(1)
    low, high = torch.zeros(n, dtype=torch.float64), torch.full((n,), gamma, dtype=torch.float64)
    for _ in range(100):
        a = (low + high) / 2
        moved = (logits + (a * variances)[:, None] * r).softmax(1)
        above = (moved * (r - r.gather(1, labels[:, None]))).sum(1) + a * r.square().sum(1) / gamma > 0
        low, high = low.where(above, a), a.where(above, high)
    H = op(
        variances[:, None, None].to(device),
        logits[:, None].to(device),
        labels[:, None].to(device),
        gamma,
        "line_search",
        "categorical",
    )[0]
    unsure = r.norm(dim=1) > 1e-3
    torch.testing.assert_close(H[:, 0].cpu()[unsure], (high[:, None] * r)[unsure], rtol=1e-9, atol=1e-14)


@every_gamma
def test_line_search_does_not_depend_on_other_rows(gamma: float, draw: Draw, device: str) -> None:
    """Rows are solved together: iterations for a hard row must not change a row that has converged."""
    logits, variances, labels = (x[:, None].to(device) for x in search_rows(draw, 3))
    together = op(variances[:, None], logits, labels, gamma, "line_search", "categorical")[0]
    for i in range(len(logits)):
        one = slice(i, i + 1)
        alone = op(variances[one, None], logits[one], labels[one], gamma, "line_search", "categorical")[0]
        torch.testing.assert_close(together[one], alone, rtol=1e-14, atol=0)
