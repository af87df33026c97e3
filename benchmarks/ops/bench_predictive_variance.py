"""Variance of 10,000 rows. Limit: the sgemm rate, on half of N D^2 multiply-adds since Sigma is symmetric."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw

N = 10_000


@pytest.mark.parametrize("n_features", [384, 768])
def bench_predictive_variance(time_op: Callable[..., None], draw: Draw, n_features: int) -> None:
    time_op(
        ops.predictive_variance,
        features=draw.normal(N, n_features).float(),
        covariance=draw.covariance(n_features).float(),
    )
