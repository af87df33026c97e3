import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.native import require_native
from tests.ops.examples import example

op = ops.inner_products
# Few rows and many, panels and groups that are full and not, and more features than one chunk of the sums.
SIZES = [
    {"N": 1, "E": 1, "D": 1},
    {"N": 5, "E": 37, "D": 3},
    {"N": 14, "E": 64, "D": 32},
    {"N": 15, "E": 33, "D": 17},
    {"N": 43, "E": 300, "D": 129},
    {"N": 30, "E": 70, "D": 801},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_is_every_inner_product(sizes: dict[str, int]) -> None:
    args = example("inner_products", **sizes)
    products = [[(row * point).sum() for point in args["points"]] for row in args["rows"]]
    assert_exact(op.reference(**args), torch.tensor(products, dtype=torch.float64))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("transposed", [(), ("rows",), ("points",), ("rows", "points")], ids=str)
def test_budget(sizes: dict[str, int], transposed: tuple[str, ...], dtype: torch.dtype, device: str) -> None:
    args = example("inner_products", **sizes)
    args |= {name: args[name].T.contiguous().T for name in transposed}
    assert_within_budget(op, args, dtype, device=device)


@pytest.mark.parametrize("N", [3, 14, 40])
@pytest.mark.parametrize("D", [1, 7, 130, 500])
@pytest.mark.parametrize("transposed", [False, True])
def test_equal_rows_and_points_have_equal_products(
    N: int, D: int, transposed: bool, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    require_native("inner_products", device)
    rows, copies = draw.integers(3, N), draw.integers(5, 203)
    args = example("inner_products", N=3, E=5, D=D)
    args = {"rows": args["rows"][rows], "points": args["points"][copies]}
    if transposed:
        args["points"] = args["points"].T.contiguous().T
    products = op(**cast(op, args, dtype, device=device))
    for point in range(5):
        same = products[:, copies == point]
        assert torch.equal(same, same[:, :1].expand_as(same))
    for row in range(3):
        same = products[rows == row]
        assert torch.equal(same, same[:1].expand_as(same))


@pytest.mark.parametrize("N", [3, 40])
def test_not_a_number_stays_in_its_row_and_point(N: int, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("inner_products", N=N, E=50), dtype, device=device)
    args["rows"][1, 2] = float("nan")
    args["points"][4, 0] = float("inf")
    products = op(**args)
    bad = products.isfinite().logical_not()
    assert bad[1].all()
    assert bad[:, 4].all()
    assert not bad[torch.arange(N) != 1][:, torch.arange(50) != 4].any()


def test_no_features_give_zeros(dtype: torch.dtype, device: str) -> None:
    empty = torch.empty(3, 0, dtype=dtype, device=device)
    assert torch.equal(op(empty, empty), torch.zeros(3, 3, dtype=dtype, device=device))
