"""Every kernel is faster than its reference, by a floor that any machine reaches: ``pytest benchmarks/floors.py``.

The floors are far below what ``benchmarks/`` measures. So a failure means that a kernel lost its vector code or is not
called, not that the machine was busy. Both arms are timed in turns, in processor time and one thread. A kernel fails
only if its ratio is too low three times.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import cast
from tests.native import NATIVE_OPS, require_native
from tests.ops.examples import example

ROUNDS, ATTEMPTS = 5, 3

# op -> sizes at which the reference takes some milliseconds, and how many times faster its kernel must be.
FLOORS: dict[str, tuple[dict[str, int], float]] = {
    "absorb_labels": ({"b": 10, "C": 10, "D": 384}, 1.1),  # its reference calls the kernels
    "rank_one_update": ({"B": 8, "D": 384}, 1.2),
    "rank_n_update": ({"b": 10, "D": 512}, 1.5),
    "inner_products": ({"N": 200, "E": 2000, "D": 256}, 0.4),  # the BLAS of the processor's maker may be faster
    "update_coefficients": ({"M": 20, "b": 10, "C": 10, "D": 32}, 4.0),
    "lookahead_loss": ({"N": 50, "E": 2000, "C": 10, "b": 10, "M": 20}, 2.0),
    "expected_lookahead": ({"N": 50, "E": 200, "C": 10}, 3.0),
    "predictive_variance": ({"N": 4000, "D": 256}, 1.0),
    "predictive": ({"N": 20_000, "C": 10}, 1.5),
    "utility": ({"N": 20_000, "C": 10}, 1.5),
    "mc_predictive": ({"N": 200, "S": 200, "C": 10}, 2.0),
    "selection_step_": ({"N": 20_000, "D": 64, "C": 10}, 1.5),
    "bait_step_": ({"N": 20_000, "D": 64}, 1.2),
    "badge_step_": ({"N": 20_000, "D": 64, "C": 10}, 1.2),
    "nearest_distance_": ({"N": 20_000, "D": 64, "L": 1}, 1.2),
    "coverage_gain": ({"M": 1000, "E": 2000}, 1.5),
    "kernel_coverage": ({"M": 500, "E": 2000, "D": 128}, 0.5),  # its reference calls a BLAS, as for inner_products
    "softmax_gradient": ({"N": 4000, "D": 128, "C": 10, "H": 1}, 0.7),  # so does this one
    "directional_derivatives": ({"N": 20_000, "C": 10}, 1.3),
}


def test_every_op_has_a_floor() -> None:
    assert set(FLOORS) == set(ops.OPS)


@pytest.mark.parametrize("name", sorted(NATIVE_OPS["cpu"]))
def test_kernel_is_faster_than_its_reference(name: str) -> None:
    require_native(name, "cpu")
    sizes, floor = FLOORS[name]
    op = ops.OPS[name]
    arguments = cast(op, example(name, **sizes), torch.float32)
    ratios: list[float] = []
    while len(ratios) < ATTEMPTS and max(ratios, default=0.0) < floor:
        ratios.append(measure_ratio(lambda: op(**arguments), lambda: op.reference(**arguments)))
    assert max(ratios) >= floor, f"{name} is {max(ratios):.2f} times as fast as its reference, at best of {ratios}"


def measure_ratio(native: Callable[[], object], reference: Callable[[], object]) -> float:
    calls = {"native": native, "reference": reference}
    times: dict[str, list[float]] = {arm: [] for arm in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for arm, call in calls.items():
            start = time.process_time()
            call()
            times[arm].append(time.process_time() - start)
    return statistics.median(times["reference"]) / statistics.median(times["native"])


def test_reference_timed_against_itself_is_below_the_floor() -> None:
    """A kernel that is no faster than its reference would fail."""
    op = ops.OPS["lookahead_loss"]
    arguments = cast(op, example("lookahead_loss", **FLOORS["lookahead_loss"][0]), torch.float32)
    ratio = min(measure_ratio(*(2 * [lambda: op.reference(**arguments)])) for _ in range(ATTEMPTS))
    assert ratio < FLOORS["lookahead_loss"][1]
