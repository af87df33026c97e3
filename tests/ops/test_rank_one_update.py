import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops.examples import example

SHAPES = [(1, 1), (1, 5), (3, 17), (2, 64), (5, 33), (1, 131)]
op = ops.rank_one_update


@pytest.mark.parametrize(("B", "D"), SHAPES)
def test_reference_is_a_fresh_inverse(B: int, D: int) -> None:
    args = example("rank_one_update", B=B, D=D)
    covariance, direction = op.reference(**args)
    for i in range(B):
        phi, s, old = args["features"][i], args["curvature"][i], args["covariance"][i]
        assert_exact(covariance[i], torch.linalg.inv(torch.linalg.inv(old) + s * torch.outer(phi, phi)))
        assert_exact(direction[i], old @ phi)


@pytest.mark.parametrize(("B", "D"), SHAPES)
def test_budget(B: int, D: int, dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("rank_one_update", B=B, D=D), dtype, device=device)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_budget_at_extreme_scales(scale: float, dtype: torch.dtype, device: str) -> None:
    args = example("rank_one_update", B=3, D=19)
    args["covariance"] *= scale
    assert_within_budget(op, args, dtype, device=device)
    assert_within_budget(op, args | {"curvature": args["curvature"] / scale}, dtype, device=device)


@pytest.mark.parametrize("D", [7, 16, 33, 130])
def test_symmetric_to_the_bit(D: int, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("rank_one_update", B=3, D=D), dtype, device=device)
    covariance, _ = op(**args)
    assert torch.equal(covariance, covariance.mT)


def test_a_matrix_that_is_not_symmetric_is_read_by_rows(draw: Draw, dtype: torch.dtype, device: str) -> None:
    B, D = 2, 9
    args = example("rank_one_update", B=B, D=D) | {"covariance": draw.normal(B, D, D)}
    args["curvature"] *= 0.1
    covariance, direction = op.reference(**args)
    for i in range(B):
        phi, s, matrix = args["features"][i], args["curvature"][i], args["covariance"][i]
        u = torch.stack([sum(matrix[j, k] * phi[k] for k in range(D)) for j in range(D)])
        assert_exact(direction[i], u)
        assert_exact(covariance[i], matrix - s / (1 + s * (phi @ u)) * torch.outer(u, u))
    assert_within_budget(op, args, dtype, device=device)


def test_a_sequence_is_one_direct_inverse(dtype: torch.dtype, draw: Draw, device: str) -> None:
    D, n = 12, 30
    start, rows, weights = draw.covariance(1, D), draw.normal(n, D), draw.uniform(n)
    covariance = start.to(device, dtype)
    for phi, s in zip(rows.to(device, dtype), weights.to(device, dtype), strict=True):
        covariance, _ = op(covariance, phi[None], s[None])
    direct = torch.linalg.inv(torch.linalg.inv(start[0]) + (rows.T * weights) @ rows)
    assert_exact(covariance[0].cpu().double(), direct, 1e-11 if dtype == torch.float64 else 1e-5)


def test_nan_where_the_downdate_is_not_positive(dtype: torch.dtype, device: str) -> None:
    args = example("rank_one_update", B=4, D=6)
    variance = ((args["covariance"] @ args["features"][:, :, None])[:, :, 0] * args["features"]).sum(1)
    args["curvature"][1] = -2 / variance[1]  # 1 + s v = -1
    args["curvature"][3] = -0.5 / variance[3]  # 1 + s v = 1/2, a valid removal
    covariance, direction = assert_within_budget(op, args, dtype, device=device).values.values()
    assert covariance[1].isnan().all()
    assert not covariance[[0, 2, 3]].isnan().any()
    assert not direction.isnan().any()


def test_nan_at_exactly_zero(dtype: torch.dtype, device: str) -> None:
    one = torch.ones(1, 1, 1, dtype=dtype, device=device)
    covariance, direction = op(one, one[0], -one[0, 0])  # 1 + s v = 0
    assert covariance.isnan().all()
    assert torch.equal(direction, one[0])


def test_weight_zero_changes_nothing(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("rank_one_update"), dtype, device=device)
    covariance, _ = op(**args | {"curvature": torch.zeros_like(args["curvature"])})
    assert torch.equal(covariance, args["covariance"])


def test_not_a_number_stays_in_its_own_posterior(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("rank_one_update", B=3), dtype, device=device)
    args["features"][1, 2] = float("nan")
    covariance, direction = op(**args)
    assert covariance[1].isnan().all()
    assert direction[1].isnan().all()
    assert not covariance[[0, 2]].isnan().any()
