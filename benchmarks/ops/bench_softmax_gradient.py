"""Gradient, with and without a Hessian product, over 4,000 rows of 384 features and a bias. Limit: multiply-adds."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw

N, D = 4000, 385


@pytest.mark.parametrize("n_directions", [0, 1])
@pytest.mark.parametrize("n_classes", [10, 77])
def bench_softmax_gradient(time_op: Callable[..., None], draw: Draw, n_classes: int, n_directions: int) -> None:
    time_op(
        ops.softmax_gradient,
        features=draw.normal(N, D).float(),
        logits=draw.normal(n_classes, N).float(),
        targets=draw.integers(n_classes, N),
        trust=draw.uniform(N).float(),
        directions=draw.normal(n_directions, n_classes, N).float(),
    )
