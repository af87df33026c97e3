"""Variances of many rows. Limit: half the multiply-adds of (Phi Sigma) * Phi."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw


@pytest.mark.parametrize("n_features", [384, 768])
@pytest.mark.parametrize("n_rows", [10, 10_000])
def bench_predictive_variance(time_op: Callable[..., None], draw: Draw, n_rows: int, n_features: int) -> None:
    time_op(
        ops.predictive_variance,
        features=draw.normal(n_rows, n_features).float(),
        covariance=draw.covariance(n_features).float(),
    )
