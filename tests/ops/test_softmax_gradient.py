import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops.examples import example

op = ops.softmax_gradient
# Whole and broken panels of features, few last features, whole and broken groups of classes, several tiles of rows.
SIZES = [
    {"N": 1, "D": 1, "C": 2, "H": 0},
    {"N": 6, "D": 0, "C": 3, "H": 1},
    {"N": 257, "D": 33, "C": 10, "H": 1},
    {"N": 400, "D": 36, "C": 15, "H": 0},
    {"N": 900, "D": 64, "C": 130, "H": 1},
    {"N": 17, "D": 300, "C": 77, "H": 3},
]


def loss_of(args: dict[str, Tensor], weight: Tensor) -> Tensor:
    """The cross-entropy of the logits plus those of ``weight``, as a function that autograd can differentiate."""
    logits = args["logits"].T + args["features"] @ weight.T
    return (args["trust"] * cross_entropy(logits, args["targets"], reduction="none")).sum()


@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_reference_is_what_autograd_finds(sizes: dict[str, int], draw: Draw) -> None:
    args = example("softmax_gradient", **sizes)
    weight = torch.zeros(sizes["C"], sizes["D"], dtype=torch.float64)
    steps = draw.normal(sizes["H"], sizes["C"], sizes["D"])
    args["directions"] = steps @ args["features"].T
    value, gradient, products = op.reference(**args)
    assert_exact(value, loss_of(args, weight))
    assert_exact(gradient, torch.autograd.functional.jacobian(lambda w: loss_of(args, w), weight))
    for step, product in zip(steps, products, strict=True):
        assert_exact(product, torch.autograd.functional.hvp(lambda w: loss_of(args, w), weight, step)[1])


# So many tiles of rows that a thread of the CUDA kernel adds several.
MANY_TILES = {"N": 16500, "D": 2, "C": 2, "H": 0}


@pytest.mark.parametrize("sizes", [*SIZES, MANY_TILES], ids=str)
def test_budget(sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("softmax_gradient", **sizes), dtype, device=device)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_certain_row_keeps_its_small_gradient(shift: float, device: str) -> None:
    """1 - p of a class that wins is a sum over the others: in float32, 1 - p would be zero here."""
    logits = torch.tensor([[20.0, 0.0], [0.0, 20.0]], device=device) + shift
    args = {"features": torch.eye(2, device=device), "logits": logits, "targets": torch.tensor([0, 1], device=device)}
    args |= {"trust": torch.ones(2, device=device), "directions": logits[None][:0]}
    loss, gradient, _ = op(**args)
    wrong = torch.tensor([[-1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) * torch.sigmoid(torch.tensor(-20.0).double())
    torch.testing.assert_close(gradient.cpu().double(), wrong, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(
        float(loss), 2.0 * float(torch.tensor(-20.0).double().exp().log1p()), rtol=1e-5, atol=0.0
    )


def test_a_row_without_trust_counts_for_nothing(dtype: torch.dtype, device: str) -> None:
    args = example("softmax_gradient", N=9)
    args["trust"][[2, 5]] = 0.0
    kept = [n for n in range(9) if n not in (2, 5)]
    fewer = {name: value[..., kept] for name, value in args.items() if name != "features"}
    results = op(**cast(op, args, dtype, device=device))
    for ours, theirs in zip(results, op(**cast(op, fewer | {"features": args["features"][kept]}, dtype)), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


def test_not_a_number_reaches_every_result(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("softmax_gradient"), dtype, device=device)
    args["logits"][1, 3] = float("nan")
    assert all(bool(result.isnan().all()) for result in op(**args))


@pytest.mark.parametrize("target", [0, 1])
def test_a_certain_row_keeps_its_small_products(target: int, device: str) -> None:
    """Relative to any class but the winner, v_0 and the mean p.v are the same number in float32."""
    args = {"features": torch.ones(1, 1), "logits": torch.tensor([[20.0], [0.0]]), "targets": torch.tensor([target])}
    args |= {"trust": torch.ones(1), "directions": torch.tensor([[[1.0], [-0.5]]])}
    _, _, products = op(**{name: value.to(device) for name, value in args.items()})
    p = torch.sigmoid(torch.tensor([[20.0], [-20.0]]).double())
    expected = 1.5 * p.prod() * torch.tensor([[[1.0], [-1.0]]]).double()
    torch.testing.assert_close(products.cpu().double(), expected, rtol=1e-5, atol=0.0)
