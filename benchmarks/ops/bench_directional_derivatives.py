"""One trial of a line search over 4,000 rows. Limit: one exponential per row and class."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw

N = 4000


@pytest.mark.parametrize("n_classes", [10, 77])
def bench_directional_derivatives(time_op: Callable[..., None], draw: Draw, n_classes: int) -> None:
    time_op(
        ops.directional_derivatives,
        logits=draw.normal(n_classes, N).float(),
        direction=draw.normal(n_classes, N).float(),
        targets=draw.integers(n_classes, N),
        trust=draw.uniform(N).float(),
        step=0.7,
    )
