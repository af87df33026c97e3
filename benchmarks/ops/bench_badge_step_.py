"""One k-means++ pick of BADGE. Limit: reading the pool and the gradients once."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import Draw

N_FEATURES = 384


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("n_pool", "n_classes"), [(10_000, 10), (200_000, 10), (10_000, 100)])
def bench_badge_step_(
    time_op: Callable[..., None], draw: Draw, n_pool: int, n_classes: int, storage: torch.dtype
) -> None:
    pool = torch.randn(n_pool, N_FEATURES, generator=draw.generator).to(storage)
    gradient = draw.normal(n_pool, n_classes).softmax(1).float()
    norms = gradient.square().sum(1) * pool.float().square().sum(1)
    time_op(
        ops.badge_step_,
        mutates=("distance",),
        pool=pool,
        u=pool[0].float(),
        offset=torch.zeros(()),
        gradient=gradient,
        g=gradient[0],
        squared_norm=norms,
        centre_norm=norms[0],
        threshold=draw.uniform().float(),
        distance=norms.clone(),
    )
