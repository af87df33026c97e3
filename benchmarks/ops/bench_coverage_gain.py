"""Gains of 10,000 rows from a kernel of 400 MB. Limit: memory, one read of it."""

from collections.abc import Callable

from lapal_ext import ops
from tests.draws import Draw

M, E = 10_000, 10_000


def bench_coverage_gain(time_op: Callable[..., None], draw: Draw) -> None:
    time_op(
        ops.coverage_gain,
        kernel=draw.uniform(M, E).float(),
        weight=draw.uniform(E).float(),
        covered=draw.uniform(E).float() / 2,
    )
