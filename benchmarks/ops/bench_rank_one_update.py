"""Absorbing one observation into B covariances. Limit: 2 B D^2 numbers moved."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw


@pytest.mark.parametrize(("n_posteriors", "n_features"), [(1, 384), (1, 768), (16, 384)])
def bench_rank_one_update(time_op: Callable[..., None], draw: Draw, n_posteriors: int, n_features: int) -> None:
    time_op(
        ops.rank_one_update,
        covariance=draw.covariance(n_features).expand(n_posteriors, -1, -1).float().contiguous(),
        features=draw.normal(n_posteriors, n_features).float(),
        curvature=draw.uniform(n_posteriors).float(),
    )
