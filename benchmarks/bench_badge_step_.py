"""One k-means++ pick of BADGE. Limit: reading the pool once."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import Draw

N_FEATURES = 384
N_CLASSES = 10


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("n_pool", [10_000, 200_000])
def bench_badge_step_(time_op: Callable[..., None], draw: Draw, n_pool: int, storage: torch.dtype) -> None:
    pool = torch.randn(n_pool, N_FEATURES, generator=draw.generator).to(storage)
    gradient = draw.normal(n_pool, N_CLASSES).float()
    squared_norm = gradient.square().sum(1) * pool.float().square().sum(1)
    time_op(
        ops.badge_step_,
        mutates=("distance",),
        pool=pool,
        u=pool[5].float(),
        offset=torch.zeros(()),
        gradient=gradient,
        g=gradient[5],
        squared_norm=squared_norm,
        centre_norm=squared_norm[5],
        threshold=draw.uniform().float(),
        distance=squared_norm.clone(),
    )
