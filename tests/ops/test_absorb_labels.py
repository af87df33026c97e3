import pytest
import torch
from torch import Tensor

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Arguments, cast
from tests.layouts import bytes_of
from tests.ops.dense_posterior import DensePosterior
from tests.ops.examples import example

op = ops.absorb_labels
RULES = [(s, c) for s in ("line_search", "newton") for c in ("categorical", "gaussian")]
every_rule = pytest.mark.parametrize(("step", "curvature"), RULES)
every_gamma = pytest.mark.parametrize("gamma", [0.5, 1.0, 10.0])
SIZES = [
    {"b": 1, "C": 2, "D": 1},
    {"b": 1, "C": 10, "D": 33},
    {"b": 5, "C": 3, "D": 17},
    {"b": 17, "C": 150, "D": 40},  # more rows and more classes than are multiplied without packing
]


def with_rule(sizes: dict[str, int], step: str, curvature: str, gamma: float) -> Arguments:
    return example("absorb_labels", **sizes) | {"step": step, "curvature": curvature, "gamma": gamma}


@every_rule
@every_gamma
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_dense_algebra(step: str, curvature: str, gamma: float, sizes: dict[str, int], device: str) -> None:
    args = with_rule(sizes, step, curvature, gamma)
    dense = DensePosterior(args["mean"], args["covariance"])
    entered = [
        dense.absorb(phi, int(y), gamma, step, curvature)
        for phi, y in zip(args["features"], args["targets"], strict=True)
    ]
    for function in (op, op.reference):
        mean, covariance, weights, finite = function(**cast(op, args, torch.float64, device=device))
        assert_exact(mean.cpu(), dense.mean)
        assert_exact(covariance.cpu(), dense.covariance)
        assert_exact(weights.cpu(), torch.tensor(entered, dtype=torch.float64))
        assert torch.equal(covariance, covariance.T)
        assert finite.item() is True


@every_rule
@pytest.mark.parametrize("sizes", [*SIZES, {"b": 130, "C": 4, "D": 70}, {"b": 6, "C": 7, "D": 800}], ids=str)
def test_budget(step: str, curvature: str, sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    actual = assert_within_budget(op, with_rule(sizes, step, curvature, 1.0), dtype, device=device).values
    assert actual["result 3"].item() is True
    assert torch.equal(actual["result 1"], actual["result 1"].T)


def test_is_the_composition_of_its_parts(dtype: torch.dtype, device: str) -> None:
    """Equal to the bit in Sigma' and s', whose sums have the same order; W' is a matrix product of torch."""
    args = cast(op, example("absorb_labels", b=9, C=12, D=50), dtype, device=device)
    actual, parts = op(**args), op.reference(**args)
    for index in (1, 2, 3):
        assert torch.equal(actual[index], parts[index])


def test_no_rows_change_nothing(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("absorb_labels", b=0), dtype, device=device)
    mean, covariance, weights, finite = op(**args)
    assert torch.equal(mean, args["mean"])
    assert torch.equal(covariance, args["covariance"])
    assert weights.shape == (0,)
    assert finite.item() is True


def test_gamma_zero_moves_the_covariance_alone(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("absorb_labels"), dtype, device=device) | {"gamma": 0.0}
    mean, covariance, _, _ = op(**args)
    assert torch.equal(mean, args["mean"])
    assert covariance.trace() < args["covariance"].trace()


def test_the_upper_triangle_of_the_result_mirrors_the_lower(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("absorb_labels", D=20), dtype, device=device)
    covariance = args["covariance"].clone()
    covariance[2, 11] += 1e-3  # no longer symmetric
    _, updated, _, _ = op(**args | {"covariance": covariance})
    assert torch.equal(updated, updated.T)


# Results that are not finite


def overflowing(name: str, dtype: torch.dtype) -> Arguments:
    """Arguments that make one of the checked values infinite or NaN, and as few others as possible."""
    args = cast(op, example("absorb_labels", b=3, C=5, D=40), dtype)
    huge = torch.finfo(dtype).max
    if name == "gram":  # an infinite variance makes beta and the steps zero: W' and Sigma' stay finite
        args |= {"features": torch.ones(1, 40, dtype=dtype), "step": "newton", "curvature": "gaussian"}
        args["targets"] = args["targets"][:1]
        args["covariance"] = huge / 8 * torch.eye(40, dtype=dtype)
    elif name == "a losing logit":
        args["mean"][4] = 0.0
        args["mean"][4, 7], args["features"][2, 7] = -huge / 2, 8.0
        args["targets"][:] = 0
    elif name in {"mean", "covariance"}:  # the variance of the row is one, its covariances are far larger
        args["features"] = torch.eye(1, 40, dtype=dtype)
        args["targets"] = args["targets"][:1]
        args["covariance"] = torch.eye(40, dtype=dtype)
        args["covariance"][0, 31] = args["covariance"][31, 0] = 100.0 if name == "mean" else 10 * huge**0.5
        args |= {"gamma": huge, "step": "newton"} if name == "mean" else {}
    elif name == "observation":  # |x|^2 alone
        args["covariance"] = torch.eye(40, dtype=dtype) * torch.finfo(dtype).tiny
        args["mean"] = torch.zeros_like(args["mean"])
        args["features"][1, 3] = 4 * huge**0.5
    elif name == "beta":  # a variance of -1/2 leaves 1 + s v positive; only beta shows it
        args |= {"features": torch.eye(1, 40, dtype=dtype), "gamma": 0.0, "curvature": "gaussian"}
        args["targets"] = args["targets"][:1]
        args["covariance"] = -0.5 * torch.eye(40, dtype=dtype)
    elif name == "not PSD":
        args["covariance"] = -torch.eye(40, dtype=dtype)
    else:
        args[name][(0,) * args[name].dim()] = float("nan")
    return args


CAUSES = ["gram", "a losing logit", "mean", "covariance", "observation", "beta", "not PSD", "features"]


@pytest.mark.parametrize("cause", CAUSES)
def test_the_last_result_is_false_if_a_result_is_not_finite(cause: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, overflowing(cause, dtype), dtype, device=device)
    for function in (op, op.reference):
        assert function(**args)[3].item() is False


@pytest.mark.parametrize("place", [0, 15, 16, 38, 39])
@pytest.mark.parametrize("name", ["mean", "covariance"])
def test_an_infinity_anywhere_is_seen(name: str, place: int, dtype: torch.dtype, device: str) -> None:
    """One infinite element of the mean or the covariance, which only the checks can find."""
    args = cast(op, example("absorb_labels", b=2, C=5, D=40), dtype, device=device)
    assert op(**args)[3].item() is True
    args[name][-1, place] = float("inf")
    assert op(**args)[3].item() is False


@pytest.mark.parametrize("wrong", [-1, 5])
def test_labels_outside_the_classes_never_pass(wrong: int, device: str, kernels_raise: bool) -> None:
    args = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in example("absorb_labels").items()}
    args["targets"][2] = wrong
    before = bytes_of(args["mean"]), bytes_of(args["covariance"])
    try:
        passed = op(**args)[3].item()
    except (RuntimeError, ValueError, IndexError):
        passed = None
    assert passed is None if kernels_raise else not passed
    assert torch.equal(bytes_of(args["mean"]), before[0])
    assert torch.equal(bytes_of(args["covariance"]), before[1])


def test_no_features_are_accepted(device: str) -> None:
    """Nothing is read past the end of an empty matrix, for example to find its largest variance."""
    args = cast(op, example("absorb_labels", D=0), torch.float32, device=device)
    for function in (op, op.reference):
        mean, covariance, weights, sound = function(**args)
        assert (mean.shape[1], covariance.shape) == (0, (0, 0))
        assert weights.isfinite().all()
        assert sound.item() is True


@pytest.mark.parametrize("large", ["feature", "covariance"])
def test_the_last_result_is_false_if_rounding_errors_may_be_large(large: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("absorb_labels", b=2, C=5, D=40), dtype, device=device)
    assert op(**args)[3].item() is True
    if large == "feature":
        args["features"][1, 7] = 2.0 / torch.finfo(dtype).eps ** 0.5
    else:
        args["covariance"][9, 9] = 1.0 / torch.finfo(dtype).eps
    for function in (op, op.reference):
        assert function(**args)[3].item() is False
