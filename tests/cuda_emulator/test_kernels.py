"""Every CUDA kernel with its launcher, on the emulator: against the float64 reference, under several schedules.

``pytest -n 2 -m slow tests/cuda_emulator/test_kernels.py`` runs all cases under twenty schedules, and
``pytest tests/ops --device emulated`` the tests of the ops on these kernels.
"""

import pytest
import torch

from lapal_ext.ops import OPS
from tests.budget import assert_within_budget, outcome
from tests.cuda_emulator.build import CSRC, KERNELS, emulated
from tests.cuda_emulator.cases import Case, calls_out_of_range, cases
from tests.native import NATIVE_OPS
from tests.ops.every_op import assert_same

FEW_SCHEDULES, MANY_SCHEDULES = 3, 20


def test_native_ops_lists_every_kernel() -> None:
    assert set(KERNELS) == NATIVE_OPS["cuda"]
    assert {f"{name}.cuh" for name in KERNELS} <= {path.name for path in (CSRC / "cuda" / "ops").glob("*.cuh")}


@pytest.fixture(autouse=True)
def poison_fresh_memory() -> None:
    """In deterministic mode torch fills new tensors with NaN, which shows what a kernel leaves unwritten."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def check_schedules(case: Case, schedules: int) -> None:
    """The result is within the budget, and has the same bits on every schedule."""
    op, kernel = OPS[case.name], emulated(case.name)
    kernel.seed(0)
    within = assert_within_budget(op, case.arguments(), case.dtype, pool_dtype=case.pool_dtype, function=kernel)
    args = case.rounded()
    first = outcome(kernel, op, args)
    # The order of a sum may depend on the layout.
    tolerance = 1e-12 if case.dtype == torch.float64 else 2e-5
    assert_same(first, within, tolerance if case.layout != "contiguous" else 0.0)
    for seed in range(1, schedules):
        kernel.seed(seed)
        assert_same(outcome(kernel, op, args), first)


@pytest.mark.parametrize("case", [case for case in cases() if case.essential], ids=str)
def test_a_few_schedules_give_the_same_bits_within_the_budget(case: Case) -> None:
    check_schedules(case, FEW_SCHEDULES)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_schedule_gives_the_same_bits_within_the_budget(case: Case) -> None:
    check_schedules(case, MANY_SCHEDULES)


@pytest.mark.parametrize("name", KERNELS)
def test_indices_out_of_range_give_not_a_number(name: str) -> None:
    """A CUDA kernel cannot raise: it reads nothing at such an index, and gives NaN instead."""
    for where, args in calls_out_of_range(name):
        values = outcome(emulated(name), OPS[name], args).values.values()
        assert any(value.isnan().any() for value in values), where
