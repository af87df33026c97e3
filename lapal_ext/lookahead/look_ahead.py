"""The loss that the model would have after each of many hypothetical batches."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.entries import entry
from lapal_ext.lookahead.evaluation import Hypotheses, check_evaluation, tiles
from lapal_ext.pool.feature_files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.class_names import class_numbers
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import coefficients
from lapal_ext.rules import UpdateRule, check_rule
from lapal_ext.validation.arrays import Array, Labels, Rows
from lapal_ext.validation.tensors import (
    ShapeSpec,
    as_labels,
    check_index_range,
    check_labels,
    check_tensors,
    shape_text,
)

Batches = Array | Sequence[Rows]
"""Row numbers of the pool, as many in each batch: integers of any type."""

LabelsOfBatches = Labels | Sequence[Sequence[int]] | Sequence[Sequence[str]]
"""Labels in one row, or one row of them per batch."""


@entry
@torch.no_grad()
def look_ahead(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    batches: Batches,  # [M, b]
    targets: LabelsOfBatches,  # [N] or [M, b]
    eval_features: Array,  # [E, D]
    eval_targets: Labels | None = None,  # [E]
    loss: str | None = None,
    step: str = "line_search",
    gamma: float = 1.0,
    link: str = "plugin",
) -> Tensor:  # [M]
    """Mean loss over the evaluation points after each hypothetical batch, absorbed in order.

    The result equals that of ``condition_on`` and a loss for every batch. But a hypothesis needs no D x D matrix and no
    C x E prediction: the columns Phi_eval Sigma Phi^T are computed once for the distinct rows in the batches.

    Args:
        posterior: a fitted model; not modified.
        pool: features that ``batches`` index, [N, D].
        batches: M candidate batches of b distinct rows, [M, b]: integers of any type, in a tensor, an array, or a list
            of M lists, arrays or tensors.
        targets: the labels to assume, one per row of the pool [N] or one per entry of the batches [M, b]: numbers of
            classes or, where the posterior has ``class_names``, their names. Both may be a list, or M lists of b.
        eval_features: the evaluation points, [E, D], E >= 1.
        eval_targets: their labels, [E]; for ``cross_entropy``, ``zero_one`` and ``brier``, and for these alone.
        loss: one of those, or ``expected_cross_entropy`` (the entropy) or ``expected_zero_one``, which are expectations
            under the model's own predictive; by default ``cross_entropy`` with ``eval_targets``, else
            ``expected_zero_one``.
        step: ``line_search`` or ``newton``.
        gamma: trust in the labels, >= 0.
        link: ``plugin`` or ``mean_field``.

    Returns:
        [M], lower is better. O(N' D^2 + N' D E + M E b C) for N' distinct rows.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
        NotPSDError: the covariance is not positive semi-definite.
    """
    rows = Pool(posterior, pool)
    numbers = _as_batches(batches, rows)
    labels = _labels_of_batches(targets, numbers, rows, posterior)
    evaluation = check_evaluation(posterior, eval_features, eval_targets, loss, link)
    rule = check_rule(step, gamma, posterior.curvature)
    sums = [
        evaluation.sum_losses(posterior, _hypotheses(posterior, rows, numbers[tile], labels[tile], rule))
        for tile in tiles(len(numbers), numbers.shape[1] * max(posterior.mean.shape))
    ]
    means = torch.cat(sums) if sums else posterior.mean.new_zeros(0, dtype=torch.float64)
    return (means / len(evaluation)).to(posterior.mean.dtype)


def _hypotheses(
    posterior: LastLayerLaplace,
    pool: Pool,
    batches: Tensor,  # [m, b]
    labels: Tensor,  # [m, b]
    rule: UpdateRule,
) -> Hypotheses:
    distinct, local = batches.unique(return_inverse=True)
    x = pool.standardized(distinct)
    directions = ops.inner_products(x, posterior.covariance.mT)
    logits = ops.inner_products(x, posterior.mean)
    gram = torch.einsum("mbd,mcd->mbc", *(_rows_of_batches(rows, local) for rows in (directions, x)))
    h, triangle, beta, _ = coefficients(gram, logits[local], labels, rule, name="pool", rows=batches)
    return Hypotheses(directions, local, h, triangle, beta)


def _rows_of_batches(
    rows: Tensor,  # [n, D]
    batches: Tensor,  # [m, b] int64
) -> Tensor:  # [m, b, D]
    return rows.index_select(0, batches.flatten()).view(*batches.shape, -1)  # three times as fast as rows[batches]


def _as_batches(given: Batches, pool: Pool) -> Tensor:  # [M, b] int64
    numbers, shape = _in_one_row("batches", given)
    batches = as_labels("batches", numbers, pool.storage.device)
    batches = batches if shape is None else batches.view(shape)
    check_tensors({"batches": ShapeSpec.parse("int64 [M, b]")}, {"batches": batches})
    if batches.shape[1] == 0:
        raise ValueError(f"batches must hold at least one row each, got {shape_text(batches.shape)}")
    check_index_range("batches", batches, pool.size, f"[0, {pool.size}), one of the rows of pool")
    ordered = batches.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if bool(twice.any()):
        raise ValueError(f"batches must not hold a row twice, got batch {int(twice.int().argmax())} with one")
    return batches


def _labels_of_batches(
    targets: LabelsOfBatches,
    batches: Tensor,  # [M, b]
    pool: Pool,
    posterior: LastLayerLaplace,
) -> Tensor:  # [M, b]
    num_classes = posterior.num_classes
    given, shape = _in_one_row("targets", targets)
    labels = as_labels("targets", class_numbers("targets", given, posterior.class_names), pool.storage.device)
    labels = labels if shape is None else labels.view(shape)
    if labels.shape == (pool.size,):
        check_labels("targets", labels, num_classes)
        return labels[batches]
    if labels.shape != batches.shape:
        raise ValueError(
            f"targets must have shape ({pool.size},), one label per row of pool, or {shape_text(batches.shape)} like "
            f"batches, got {shape_text(labels.shape)}"
        )
    check_labels("targets", labels, num_classes)
    return labels


def _in_one_row(name: str, values: object) -> tuple[object, tuple[int, int] | None]:
    """A list of rows of numbers or names, or a matrix of names or objects, as one list and its shape.

    Other values are left as they are.

    Raises:
        ValueError: the rows differ in length.
    """
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind in "OUT":
        return values.reshape(-1).tolist(), (values.shape[0], values.shape[1])
    if not isinstance(values, (list, tuple)) or not values:
        return values, None
    if not all(isinstance(row, (list, tuple, range)) or getattr(row, "ndim", 0) == 1 for row in values):
        return values, None
    rows: list[list[object]] = [list(row) for row in values]
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(
                f"{name} must hold lists of one length, got {len(rows[0])} in list 0 and {len(row)} in list {number}"
            )
    return [value for row in rows for value in row], (len(rows), len(rows[0]))
