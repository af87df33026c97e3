"""Gains of 10,000 rows, and of the 64 of a step of a lazy search. Limit: arithmetic, M E D and M E exponentials."""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import Draw

E, D = 10_000, 384


@pytest.mark.parametrize("n_rows", [10_000, 64])
def bench_kernel_coverage(time_op: Callable[..., None], draw: Draw, n_rows: int) -> None:
    rows, references = (torch.nn.functional.normalize(draw.normal(count, D), dim=1).float() for count in (n_rows, E))
    time_op(
        ops.kernel_coverage,
        rows=rows,
        references=references.T.contiguous().T,  # the layout that few rows read in place
        weight=draw.uniform(E).float(),
        covered=draw.uniform(E).float() / 8,
        inverse_squared_bandwidth=1.3,
    )
