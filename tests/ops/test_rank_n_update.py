import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops.examples import example

op = ops.rank_n_update
SIZES = [
    {"b": 1, "D": 1},
    {"b": 3, "D": 13},
    {"b": 14, "D": 64},
    {"b": 29, "D": 97},
    {"b": 130, "D": 33},
    {"b": 790, "D": 40},  # more rows than one chunk of the sums
]
with_and_without_triangle = pytest.mark.parametrize("variant", ["all", "identity"])


@pytest.mark.parametrize("sizes", SIZES[:4], ids=str)
@with_and_without_triangle
def test_reference_is_the_sum_of_outer_products(sizes: dict[str, int], variant: str) -> None:
    args = example("rank_n_update", variant, **sizes)
    u = args["rows"] if args["triangle"] is None else torch.linalg.inv(args["triangle"]) @ args["rows"]
    terms = [w * torch.outer(row, row) for w, row in zip(args["weights"], u, strict=True)]
    assert_exact(op.reference(**args), args["matrix"] + torch.stack(terms).sum(0))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@with_and_without_triangle
def test_budget(sizes: dict[str, int], variant: str, dtype: torch.dtype, device: str) -> None:
    args = example("rank_n_update", variant, **sizes)
    if args["triangle"] is not None:  # a random triangle of this size is nearly singular
        args["triangle"] = torch.eye(sizes["b"], dtype=torch.float64) + (args["triangle"].tril(-1) / sizes["b"])
    assert_within_budget(op, args, dtype, device=device)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_symmetric_to_the_bit(sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    result = op(**cast(op, example("rank_n_update", "identity", **sizes), dtype, device=device))
    assert torch.equal(result, result.T)


@with_and_without_triangle
def test_reads_the_lower_triangles_alone(variant: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("rank_n_update", variant, D=40, b=20), dtype, device=device)
    wanted = op(**args)
    args["matrix"] = args["matrix"] + torch.full_like(args["matrix"], float("nan")).triu(1)
    if args["triangle"] is not None:
        args["triangle"] = args["triangle"] + torch.full_like(args["triangle"], float("nan")).triu()
    assert torch.equal(op(**args), wanted)


def test_one_row_is_a_rank_one_update(draw: Draw, dtype: torch.dtype, device: str) -> None:
    covariance, phi, s = draw.covariance(1, 19), draw.normal(1, 19), draw.uniform(1)
    new, u = ops.rank_one_update.reference(covariance, phi, s)
    beta = s / (1 + s * (phi * u).sum())
    args = {"matrix": covariance[0], "rows": u, "weights": -beta, "triangle": None}
    assert_exact(op.reference(**args), new[0])
    assert_within_budget(op, args, dtype, device=device)


@with_and_without_triangle
def test_no_rows_change_nothing(variant: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("rank_n_update", variant, b=0), dtype, device=device)
    assert torch.equal(op(**args), args["matrix"])


def test_a_nan_weight_makes_all_elements_nan(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("rank_n_update", D=40), dtype, device=device)
    args["weights"][2] = float("nan")
    assert op(**args).isnan().all()
