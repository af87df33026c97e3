import pytest
import torch
from torch.nn.functional import cross_entropy

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops.examples import example

op = ops.directional_derivatives
SIZES = [{"N": 1, "C": 2}, {"N": 17, "C": 3}, {"N": 256, "C": 40}, {"N": 1025, "C": 7}, {"N": 5, "C": 1000}]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_reference_is_what_autograd_finds(sizes: dict[str, int]) -> None:
    args = example("directional_derivatives", **sizes)
    step = torch.tensor(args["step"], dtype=torch.float64, requires_grad=True)
    logits = args["logits"] + step * args["direction"]
    loss = (args["trust"] * cross_entropy(logits.T, args["targets"], reduction="none")).sum()
    (first,) = torch.autograd.grad(loss, step, create_graph=True)
    (second,) = torch.autograd.grad(first, step)
    rates = torch.autograd.functional.jacobian(
        lambda s: (args["logits"] + s * args["direction"]).softmax(0), step.detach()
    )
    for ours, theirs in zip(op.reference(**args), (first.detach(), second, rates.abs().max()), strict=True):
        assert_exact(ours, theirs)


# So many tiles of rows that a thread of the CUDA kernel adds several.
MANY_TILES = {"N": 16500, "C": 2}


@pytest.mark.parametrize("sizes", [*SIZES, MANY_TILES], ids=str)
def test_budget(sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("directional_derivatives", **sizes), dtype, device=device)


def test_a_number_added_to_all_classes_changes_nothing(dtype: torch.dtype, device: str, draw: Draw) -> None:
    args = example("directional_derivatives", N=30)
    moved = args | {"direction": args["direction"] + 2.0 ** draw.integers(6, 30)}
    for ours, theirs in zip(*(op(**cast(op, some, dtype, device=device)) for some in (args, moved)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_not_a_number_reaches_every_result(dtype: torch.dtype, device: str) -> None:
    for name in ("logits", "direction"):
        args = cast(op, example("directional_derivatives"), dtype, device=device)
        args[name][1, 3] = float("nan")
        assert all(bool(result.isnan()) for result in op(**args))


def test_a_target_far_away_does_not_hide_small_rates(device: str) -> None:
    """The target has no probability and a direction of 1e4; relative to it, 1e-3 would be rounded."""
    args = {"logits": torch.tensor([[0.0], [-3.0], [-80.0]]), "direction": torch.tensor([[0.0], [1e-3], [1e4]])}
    args |= {"targets": torch.tensor([2]), "trust": torch.ones(1)}
    results = op(**{name: value.to(device) for name, value in args.items()}, step=0.0)
    wide = {name: value.double() if value.is_floating_point() else value for name, value in args.items()}
    for ours, theirs in zip(results, op.reference(**wide, step=0.0), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=0.0)
