"""One pick's pass over the pool. Limit: reading the pool once."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from lapal_ext.likelihood import MEAN_FIELD_FACTOR
from tests.draws import Draw

N_FEATURES = 384


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("n_pool", "n_classes"), [(10_000, 10), (200_000, 10), (10_000, 100)])
def bench_selection_step_(
    time_op: Callable[..., None], draw: Draw, n_pool: int, n_classes: int, storage: torch.dtype
) -> None:
    pool = torch.randn(n_pool, N_FEATURES, generator=draw.generator).to(storage)
    time_op(
        ops.selection_step_,
        mutates=("logits", "variance", "taken"),
        pool=pool,
        u=0.01 * draw.normal(N_FEATURES).float(),
        offset=draw.normal().float(),
        g=draw.normal(n_classes).float(),
        beta=draw.uniform().float(),
        logits=draw.normal(n_classes, n_pool).float().T,
        variance=1.0 + draw.uniform(n_pool).float(),
        taken=torch.zeros(n_pool, dtype=torch.bool),
        scale=None,
        kind="margin",
        kappa=MEAN_FIELD_FACTOR,
    )
