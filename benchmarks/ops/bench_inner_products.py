"""The columns of 1000 rows over 10,000 points, and 10 and 100 rows against a covariance. Limit: arithmetic, N E D."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw


@pytest.mark.parametrize("n_features", [384, 768])
@pytest.mark.parametrize(("n_rows", "n_points"), [(1000, 10_000), (100, 0), (10, 0)])
def bench_inner_products(time_op: Callable[..., None], draw: Draw, n_rows: int, n_points: int, n_features: int) -> None:
    rows = draw.normal(n_rows, n_features).float()
    points = draw.normal(n_points, n_features) if n_points else draw.covariance(n_features).mT
    time_op(ops.inner_products, rows=rows, points=points.float())
