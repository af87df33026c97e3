import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.native import require_native
from tests.ops.examples import example

op = ops.predictive_variance
SIZES = [{"N": 1, "D": 1}, {"N": 5, "D": 3}, {"N": 130, "D": 17}, {"N": 33, "D": 129}, {"N": 71, "D": 100}]
few_and_many = pytest.mark.parametrize("N", [9, 90])  # kernels may treat few rows in another way


def by_loops(features: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    quadratic = [sum(phi[i] * (matrix[i] * phi).sum() for i in range(len(phi))) for phi in features]
    return torch.stack(quadratic)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_is_the_quadratic_form(sizes: dict[str, int]) -> None:
    args = example("predictive_variance", **sizes)
    assert_exact(op.reference(**args), by_loops(args["features"], args["covariance"]))


@few_and_many
@pytest.mark.parametrize("D", [6, 70])
def test_a_matrix_that_is_not_symmetric(N: int, D: int, draw: Draw, dtype: torch.dtype, device: str) -> None:
    args = {"features": draw.normal(N, D), "covariance": draw.normal(D, D)}
    assert_exact(op.reference(**args), by_loops(args["features"], args["covariance"]))
    assert_within_budget(op, args, dtype, device=device)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_budget(sizes: dict[str, int], scale: float, dtype: torch.dtype, device: str) -> None:
    args = example("predictive_variance", **sizes)
    args["features"] *= scale
    assert (assert_within_budget(op, args, dtype, device=device, each=True).values["result 0"] > 0).all()


@few_and_many
def test_not_a_number_stays_in_its_row(N: int, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("predictive_variance", N=N), dtype, device=device)
    args["features"][1, 2] = float("nan")
    assert op(**args).isnan().nonzero()[:, 0].tolist() == [1]


@pytest.mark.parametrize("D", [1, 7, 67, 130])
def test_equal_rows_have_equal_variances(D: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    require_native("predictive_variance", device)
    copies = draw.integers(5, 203)
    args = example("predictive_variance", N=5, D=D)
    args["features"] = args["features"][copies]
    variance = op(**cast(op, args, dtype, device=device))
    for copy in range(5):
        assert (variance[copies == copy] == variance[copies == copy][0]).all()
