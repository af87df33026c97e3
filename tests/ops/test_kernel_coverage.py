from typing import Any

import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Arguments, Draw, cast
from tests.native import require_native
from tests.ops.examples import example

op = ops.kernel_coverage
SIZES = [
    {"M": 1, "E": 1, "D": 1},
    {"M": 5, "E": 3, "D": 2},
    {"M": 3, "E": 300, "D": 17},
    {"M": 130, "E": 33, "D": 129},
    {"M": 15, "E": 1025, "D": 9},
    {"M": 29, "E": 70, "D": 400},
]


def by_loops(args: Arguments) -> torch.Tensor:
    gains = []
    for row in args["rows"]:
        squares = (args["references"] - row).square().sum(1)
        kernel = (-squares * args["inverse_squared_bandwidth"]).exp()
        gains.append((args["weight"] * (kernel - args["covered"]).clamp(min=0.0)).sum())
    return torch.stack(gains)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("inverse", [0.1, 1.3, 20.0])
def test_reference_is_the_formula(sizes: dict[str, int], inverse: float) -> None:
    args = example("kernel_coverage", **sizes) | {"inverse_squared_bandwidth": inverse}
    assert_exact(op.reference(**args), by_loops(args))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("inverse", [0.1, 1.3, 20.0])
def test_budget(sizes: dict[str, int], inverse: float, dtype: torch.dtype, device: str) -> None:
    args = example("kernel_coverage", **sizes) | {"inverse_squared_bandwidth": inverse}
    # An inner product is rounded by eps, and the kernel moves by as much times its exponent.
    assert_within_budget(op, args, dtype, device=device, logit_size=2.0 * inverse)


def test_a_product_above_one_counts_as_one(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("kernel_coverage", M=4, E=4), dtype, device=device)
    args["rows"] = args["references"] * 1.0002  # without the limit, the kernel of a row with itself would be 1.2
    args["covered"] = torch.zeros_like(args["covered"])
    args["inverse_squared_bandwidth"] = 500.0
    torch.testing.assert_close(op(**args), args["weight"].double())  # each covers itself, and no other


def test_a_reference_that_is_covered_counts_for_nothing(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("kernel_coverage"), dtype, device=device)
    args["covered"] = torch.ones_like(args["covered"])
    assert (op(**args) == 0.0).all()


def test_distant_rows_gain_exactly_nothing(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("kernel_coverage"), dtype, device=device)
    args["inverse_squared_bandwidth"] = 1e6
    args["covered"] = torch.zeros_like(args["covered"])
    assert (op(**args) == 0.0).all()


def test_not_a_number_stays_in_its_row(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("kernel_coverage", M=29), dtype, device=device)
    args["rows"][17, 3] = float("nan")
    assert op(**args).isnan().nonzero()[:, 0].tolist() == [17]


@pytest.mark.parametrize("name", ["references", "weight", "covered"])
def test_not_a_number_of_a_reference_is_in_every_gain(name: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("kernel_coverage", M=29), dtype, device=device)
    args["covered"] = torch.zeros_like(args["covered"])
    args[name][2] = float("nan")
    assert op(**args).isnan().all()


@pytest.mark.parametrize("inverse", [0.0, -1.0, float("inf"), float("nan")])
def test_bandwidth_must_be_positive(inverse: float) -> None:
    with pytest.raises(ValueError, match="inverse_squared_bandwidth must be"):
        op(**example("kernel_coverage") | {"inverse_squared_bandwidth": inverse})


@pytest.mark.parametrize("sizes", [{"E": 1, "D": 1}, {"E": 67, "D": 7}, {"E": 1030, "D": 130}], ids=str)
def test_a_gain_does_not_depend_on_the_other_rows(
    sizes: dict[str, int], dtype: torch.dtype, device: str, draw: Draw
) -> None:
    require_native("kernel_coverage", device)
    copies = draw.integers(5, 103)
    args = cast(op, example("kernel_coverage", M=5, **sizes), dtype, device=device)
    alone = torch.cat([op(**args | {"rows": args["rows"][[row]]}) for row in range(5)])
    together = op(**args | {"rows": args["rows"][copies]})
    assert torch.equal(together.cpu(), alone.cpu()[copies])


@pytest.mark.parametrize(
    "sizes", [{"M": 1, "E": 70, "D": 3}, {"M": 20, "E": 300, "D": 50}, {"M": 16, "E": 77, "D": 800}], ids=str
)
def test_references_in_any_layout_give_the_same_bits(sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    require_native("kernel_coverage", device)
    args = cast(op, example("kernel_coverage", **sizes), dtype, device=device)
    columns = args["references"].T.contiguous().T
    assert torch.equal(op(**args), op(**args | {"references": columns}))


def test_an_infinite_feature_is_as_in_the_reference(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("kernel_coverage", M=5, E=33), dtype, device=device)
    args["rows"][2, 0] = float("inf")
    torch.testing.assert_close(op(**args), op.reference(**args))


def test_sums_of_more_rows_than_wait_at_once(device: str) -> None:
    require_native("kernel_coverage", device)
    args = cast(op, example("kernel_coverage", M=1, E=300, D=2), torch.float32, device=device)
    gains = op(**args | {"rows": args["rows"].expand(700_000, -1)})
    assert (gains == op(**args)).all()


@pytest.mark.parametrize(
    "sizes", [{"E": 1, "D": 1}, {"E": 30, "D": 5}, {"E": 700, "D": 33}, {"E": 470, "D": 400}], ids=str
)
@pytest.mark.parametrize("by_columns", [False, True])
def test_rows_that_are_the_references(sizes: dict[str, int], by_columns: bool, dtype: torch.dtype, device: str) -> None:
    """Their kernel is symmetric, which a kernel may use."""
    args = example("kernel_coverage", M=1, **sizes)
    args["rows"] = args["references"]

    def same_memory(**given: Any) -> torch.Tensor:
        rows = given["rows"].T.contiguous().T if by_columns else given["rows"].contiguous()
        gains = op(**given | {"rows": rows, "references": rows})
        threads = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            assert torch.equal(op(**given | {"rows": rows, "references": rows}), gains)
        finally:
            torch.set_num_threads(threads)
        return gains

    assert_within_budget(op, args, dtype, device=device, logit_size=2.6, function=same_memory)


@pytest.mark.parametrize("name", ["references", "weight", "covered"])
def test_not_a_number_among_rows_that_are_the_references_is_in_every_gain(
    name: str, dtype: torch.dtype, device: str
) -> None:
    args = cast(op, example("kernel_coverage", M=1, E=500), dtype, device=device)
    args["covered"] = torch.zeros_like(args["covered"])
    args[name][311] = float("nan")
    assert op(**args | {"rows": args["references"]}).isnan().all()
