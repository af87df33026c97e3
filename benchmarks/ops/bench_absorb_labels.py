"""Absorbing 1, 10 and 100 labels in one call. Limit: arithmetic, or memory for few labels.

The reference calls the kernels of its parts, so this shows what one call saves over several.
"""

from collections.abc import Callable

import pytest
import torch

from lapal_ext import ops
from tests.draws import cast
from tests.ops.examples import example


@pytest.mark.parametrize(("n_features", "n_classes"), [(384, 10), (768, 100)])
@pytest.mark.parametrize("n_labels", [1, 10, 100])
def bench_absorb_labels(time_op: Callable[..., None], n_labels: int, n_features: int, n_classes: int) -> None:
    op = ops.absorb_labels
    time_op(op, **cast(op, example(op.name, b=n_labels, D=n_features, C=n_classes), torch.float32))
