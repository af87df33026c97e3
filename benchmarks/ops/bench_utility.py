"""Link, softmax and utility of 10,000 rows. Limit: N C exponentials, then reading N C numbers."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from lapal_ext.likelihood import MEAN_FIELD_FACTOR
from tests.draws import Draw

N = 10_000


@pytest.mark.parametrize("layout", ["row_major", "class_major"])
@pytest.mark.parametrize("kind", ["margin", "entropy"])
@pytest.mark.parametrize("n_classes", [10, 100])
def bench_utility(time_op: Callable[..., None], draw: Draw, n_classes: int, kind: str, layout: str) -> None:
    logits = draw.normal(N, n_classes).float()
    time_op(
        ops.utility,
        logits=logits if layout == "row_major" else logits.T.contiguous().T,
        variance=draw.uniform(N).float(),
        scale=None,
        kind=kind,
        kappa=MEAN_FIELD_FACTOR,
    )
