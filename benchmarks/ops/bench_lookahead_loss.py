"""Loss after each of 300 batches of 10 over 10,000 points. Limit: exponentials and multiply-adds."""

from collections.abc import Callable

import pytest

from lapal_ext import ops
from lapal_ext.likelihood import MEAN_FIELD_FACTOR
from tests.draws import Draw

M, SIZE, N, E = 300, 10, 1000, 10_000


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("loss", ["cross_entropy", "expected_zero_one"])
@pytest.mark.parametrize("n_classes", [10, 100])
def bench_lookahead_loss(time_op: Callable[..., None], draw: Draw, n_classes: int, loss: str, link: str) -> None:
    batches = draw.integers(N, M, SIZE)
    gram, targets = draw.gram(M, SIZE, 64).float(), draw.integers(n_classes, M, SIZE)
    coefficients, triangle, beta, _ = ops.update_coefficients(
        gram, draw.normal(M, SIZE, n_classes).float(), targets, 1.0, "line_search", "categorical"
    )
    mean_field = link == "mean_field"
    time_op(
        ops.lookahead_loss,
        logits=draw.normal(n_classes, E).float(),
        columns=0.05 * draw.normal(N, E).float(),
        batches=batches,
        coefficients=coefficients,
        triangle=triangle if mean_field else None,
        beta=beta if mean_field else None,
        variance=1.0 + draw.uniform(E).float() if mean_field else None,
        targets=draw.integers(n_classes, E) if loss == "cross_entropy" else None,
        loss_kind=loss,
        kappa=MEAN_FIELD_FACTOR if mean_field else 0.0,
    )
