import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops.examples import example

op = ops.predictive_variance
SIZES = [{"N": 1, "D": 1}, {"N": 5, "D": 3}, {"N": 130, "D": 17}, {"N": 33, "D": 129}]


def by_loops(features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    quadratic = [sum(phi[i] * (matrix[i] * phi).sum() for i in range(len(phi))) for phi in features]
    return torch.stack(quadratic)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_is_the_quadratic_form(sizes: dict[str, int]) -> None:
    args = example("predictive_variance", **sizes)
    assert_exact(op.reference(**args), by_loops(args["features"], args["covariance"]))


def test_a_matrix_that_is_not_symmetric(draw: Draw, dtype: torch.dtype, device: str) -> None:
    args = {"features": draw.normal(9, 6), "covariance": draw.normal(6, 6)}
    assert_exact(op.reference(**args), by_loops(args["features"], args["covariance"]))
    assert_within_budget(op, args, dtype, device=device)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_budget(sizes: dict[str, int], scale: float, dtype: torch.dtype, device: str) -> None:
    args = example("predictive_variance", **sizes)
    args["features"] *= scale
    assert (assert_within_budget(op, args, dtype, device=device, each=True).values["result 0"] > 0).all()


def test_not_a_number_stays_in_its_row(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("predictive_variance", N=3), dtype, device=device)
    args["features"][1, 2] = float("nan")
    assert op(**args).isnan().tolist() == [False, True, False]
