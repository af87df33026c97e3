"""Loss after every label of 1,000 candidates over 1,000 points. Limit: C + 1 exponentials per candidate and point."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from tests.draws import Draw

N, E = 1000, 1000


@pytest.mark.parametrize("loss", ["expected_cross_entropy", "expected_zero_one"])
@pytest.mark.parametrize("n_classes", [10, 100])
def bench_expected_lookahead(time_op: Callable[..., None], draw: Draw, n_classes: int, loss: str) -> None:
    n_candidates = N * 10 // n_classes  # the reference takes seconds otherwise
    time_op(
        ops.expected_lookahead,
        logits=draw.normal(n_classes, E).float(),
        columns=0.5 * draw.normal(n_candidates, E).float(),
        step_lengths=draw.uniform(n_candidates).float(),
        probabilities=draw.normal(n_candidates, n_classes).softmax(1).float(),
        loss_kind=loss,
    )
