"""Mean predictive and entropy of 2,000 rows over 1,000 samples. Limit: N S C exponentials."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw

N, S = 2000, 1000


@pytest.mark.parametrize("n_classes", [10, 100])
def bench_mc_predictive(time_op: Callable[..., None], draw: Draw, n_classes: int) -> None:
    n_rows = N * 10 // n_classes
    time_op(
        ops.mc_predictive,
        logits=draw.normal(n_rows, n_classes).float(),
        variance=draw.uniform(n_rows).float(),
        noise=draw.normal(S, n_classes).float(),
    )
