"""One pick of k-centre greedy. Limit: reading the pool once; for many centres, arithmetic."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import Draw

N_FEATURES = 384


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("n_pool", "n_centres"), [(10_000, 1), (200_000, 1), (10_000, 100)])
def bench_nearest_distance_(
    time_op: Callable[..., None], draw: Draw, n_pool: int, n_centres: int, storage: torch.dtype
) -> None:
    time_op(
        ops.nearest_distance_,
        mutates=("nearest", "taken"),
        pool=torch.randn(n_pool, N_FEATURES, generator=draw.generator).to(storage),
        centres=draw.normal(n_centres, N_FEATURES).float(),
        scale=torch.ones(N_FEATURES),
        nearest=2 * N_FEATURES * draw.uniform(n_pool).float(),
        taken=torch.zeros(n_pool, dtype=torch.bool),
    )
