"""The error budget itself: a kernel that is slightly wrong must not pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.ops.examples import example


def spoiled(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda **args: change(ops.predictive.reference(**args))


def one_element(size: float) -> Callable[[Tensor], Tensor]:
    def change(p: Tensor) -> Tensor:
        p[3, 1] += size
        return p

    return change


SPOILS = {
    "an error of 1e-5": one_element(1e-5),
    "not a number": one_element(float("nan")),
    "infinity": one_element(float("inf")),
    "another dtype": lambda p: p.to(torch.bfloat16),
    "another shape": lambda p: p[:-1],
    "two rows swapped": lambda p: p.roll(1, 0),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS.keys())
def test_a_wrong_kernel_fails(spoil: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError):
        assert_within_budget(ops.predictive, example("predictive"), dtype, function=spoiled(spoil))


def test_the_reference_passes(dtype: torch.dtype) -> None:
    assert_within_budget(ops.predictive, example("predictive"), dtype, function=ops.predictive.reference)


def test_small_elements_count_where_each_is_measured() -> None:
    args = example("predictive") | {"variance": None}
    args["logits"][3, 1] = -20.0  # p about 1e-9: an error of 1e-10 is a tenth of it

    def check(each: bool) -> None:
        assert_within_budget(ops.predictive, args, torch.float32, each=each, function=spoiled(one_element(1e-10)))

    check(each=False)
    with pytest.raises(AssertionError):
        check(each=True)


def test_buffers_and_indices_are_measured_too(dtype: torch.dtype) -> None:
    args = example("badge_step_")

    def wrong_buffer(distance: Tensor, **others: Tensor) -> Tensor:
        index = ops.badge_step_.reference(distance=distance, **others)
        distance[0] += 1e-3
        return index

    def wrong_index(**all_arguments: Tensor) -> Tensor:
        return ops.badge_step_.reference(**all_arguments) + 1

    for wrong in (wrong_buffer, wrong_index):
        with pytest.raises(AssertionError):
            assert_within_budget(ops.badge_step_, args, dtype, function=wrong)


def test_exact_is_strict() -> None:
    value = torch.ones(3, dtype=torch.float64)
    assert_exact(value, value + 1e-13)
    with pytest.raises(AssertionError, match="relative error"):
        assert_exact(value, value + 1e-10)
    with pytest.raises(AssertionError):
        assert_exact(value, torch.full_like(value, float("nan")))
    with pytest.raises(AssertionError):
        assert_exact(value.float(), value)
