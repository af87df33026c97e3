"""Absorbing 10 and 100 observations into one covariance. Limit: arithmetic, b D^2 / 2, or memory for few rows."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import Draw


@pytest.mark.parametrize("n_features", [384, 768])
@pytest.mark.parametrize("n_rows", [10, 100])
def bench_rank_n_update(time_op: Callable[..., None], draw: Draw, n_rows: int, n_features: int) -> None:
    triangle = torch.eye(n_rows, dtype=torch.float64) + draw.normal(n_rows, n_rows).tril(-1) / n_rows
    time_op(
        ops.rank_n_update,
        matrix=draw.covariance(n_features).float(),
        rows=draw.normal(n_rows, n_features).float(),
        weights=-draw.uniform(n_rows).float() / n_rows,
        triangle=triangle.float(),
    )
