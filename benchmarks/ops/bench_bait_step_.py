"""One pick of BAIT. Limit: reading the pool once, for both of its products."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import Draw

N_FEATURES = 384


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("n_pool", [10_000, 200_000])
def bench_bait_step_(time_op: Callable[..., None], draw: Draw, n_pool: int, storage: torch.dtype) -> None:
    zero = torch.zeros(())
    time_op(
        ops.bait_step_,
        mutates=("h", "q", "taken"),
        pool=torch.randn(n_pool, N_FEATURES, generator=draw.generator).to(storage),
        u=0.01 * draw.normal(N_FEATURES).float(),
        u_offset=zero,
        w=0.01 * draw.normal(N_FEATURES).float(),
        w_offset=zero,
        fisher_norm=draw.uniform().float(),
        beta=draw.uniform().float(),
        curvature=0.25 * draw.uniform(n_pool).float(),
        h=3.0 + draw.uniform(n_pool).float(),
        q=3.0 + draw.uniform(n_pool).float(),
        taken=torch.zeros(n_pool, dtype=torch.bool),
    )
