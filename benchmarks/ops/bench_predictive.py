"""Link and softmax of 10,000 rows. Limit: N C exponentials, then reading and writing N C numbers."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from lapal_ext.likelihood import MEAN_FIELD_FACTOR
from tests.draws import Draw

N = 10_000


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("n_classes", [10, 100])
def bench_predictive(time_op: Callable[..., None], draw: Draw, n_classes: int, link: str) -> None:
    time_op(
        ops.predictive,
        logits=draw.normal(N, n_classes).float(),
        variance=draw.uniform(N).float() if link == "mean_field" else None,
        kappa=MEAN_FIELD_FACTOR,
    )
