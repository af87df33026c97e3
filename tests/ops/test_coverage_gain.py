import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.native import require_native
from tests.ops.examples import example

op = ops.coverage_gain
SIZES = [{"M": 1, "E": 1}, {"M": 5, "E": 3}, {"M": 3, "E": 300}, {"M": 40, "E": 17}, {"M": 33, "E": 1025}]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_is_the_growth_of_the_coverage(sizes: dict[str, int]) -> None:
    args = example("coverage_gain", **sizes)
    kernel, weight, covered = args["kernel"], args["weight"], args["covered"]
    after = torch.stack([(weight * torch.maximum(row, covered)).sum() for row in kernel])
    assert_exact(op.reference(**args), after - (weight * covered).sum())


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_budget(sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("coverage_gain", **sizes), dtype, device=device, each=True)


def test_a_reference_that_is_covered_counts_for_nothing(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("coverage_gain"), dtype, device=device)
    args["covered"] = torch.ones_like(args["covered"])
    assert (op(**args) == 0.0).all()


def test_not_a_number_stays_in_its_row(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("coverage_gain", M=9), dtype, device=device)
    args["kernel"][4, 3] = float("nan")
    assert op(**args).isnan().nonzero()[:, 0].tolist() == [4]


@pytest.mark.parametrize("name", ["weight", "covered"])
def test_not_a_number_of_a_reference_is_in_every_gain(name: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("coverage_gain", M=9), dtype, device=device)
    args["kernel"].clamp_(min=0.9)  # above what is covered: no product with zero
    args[name][2] = float("nan")
    assert op(**args).isnan().all()


@pytest.mark.parametrize("E", [1, 67, 1030])
def test_equal_rows_have_equal_gains(E: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    require_native("coverage_gain", device)
    copies = draw.integers(5, 203)
    args = example("coverage_gain", M=5, E=E)
    args["kernel"] = args["kernel"][copies]
    gains = op(**cast(op, args, dtype, device=device))
    for copy in range(5):
        assert (gains[copies == copy] == gains[copies == copy][0]).all()
