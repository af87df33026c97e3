"""The recursion of a batch: one long one (an update), many short ones (a look-ahead)."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw


@pytest.mark.parametrize("step", ["line_search", "newton"])
@pytest.mark.parametrize(("n_hypotheses", "size", "n_classes"), [(1, 100, 10), (1, 100, 100), (300, 10, 10)])
def bench_update_coefficients(
    time_op: Callable[..., None], draw: Draw, n_hypotheses: int, size: int, n_classes: int, step: str
) -> None:
    time_op(
        ops.update_coefficients,
        gram=draw.gram(n_hypotheses, size, 128).float(),
        logits=draw.normal(n_hypotheses, size, n_classes).float(),
        targets=draw.integers(n_classes, n_hypotheses, size),
        gamma=1.0,
        step=step,
        curvature="categorical",
    )
