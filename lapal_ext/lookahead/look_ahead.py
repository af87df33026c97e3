"""Trying whole batches before anyone labels them: the loss that the model would have after each."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.likelihood import EXPECTED_LOSSES, LOSSES, MEAN_FIELD_FACTOR, STEPS
from lapal_ext.pool.files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import check_variance, coefficients
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import (
    ShapeSpec,
    as_dense,
    as_labels,
    check_choice,
    check_index_range,
    check_labels,
    check_number,
    check_overflow,
    check_tensors,
    shape_text,
)

LINKS = ("plugin", "mean_field")
TILE = 1 << 23  # numbers in the largest temporary, 32 MiB in float32
_ALIGNED = 32  # numbers: one cache line in half precision, two and four in float32 and float64


@torch.no_grad()
def look_ahead(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    batches: Array,  # [M, b] int64
    targets: Array,  # [N] or [M, b] int64
    eval_features: Array,  # [E, D]
    eval_targets: Array | None = None,  # [E] int64
    loss: str = "expected_zero_one",
    step: str = "line_search",
    gamma: float = 1.0,
    link: str = "plugin",
) -> Tensor:  # [M]
    """Mean loss over the evaluation points after each hypothetical batch, absorbed in order.

    The same numbers as ``condition_on`` and a loss for every batch, without a D x D matrix or a C x E prediction per
    hypothesis: the columns Phi_eval Sigma Phi^T are computed once for the distinct rows that occur in the batches.

    Args:
        posterior: a fitted model; stays as it is.
        pool: features the batches point into, [N, D].
        batches: M candidate batches of b distinct rows, int64 [M, b].
        targets: the labels to assume, one per row of the pool [N] or one per entry of the batches [M, b].
        eval_features: where the loss is taken, [E, D], E >= 1.
        eval_targets: labels there, int64 [E]; for ``cross_entropy``, ``zero_one`` and ``brier``.
        loss: one of those, or ``expected_cross_entropy`` (the entropy) or ``expected_zero_one``, which take the model's
            own predictive as the truth.
        step: ``line_search`` or ``newton``.
        gamma: trust in the labels, >= 0.
        link: ``plugin`` or ``mean_field``.

    Returns:
        [M], lower is better. O(N' D^2 + N' D E + M E b C) for N' distinct rows.
    """
    rows = Pool(posterior, pool)
    batches = as_dense("batches", batches)
    check_tensors({"batches": ShapeSpec.parse("int64 [M, b]")}, {"batches": batches})
    _check_batches(batches, rows)
    labels = _labels_of_batches(targets, batches, rows, posterior.num_classes)
    eval_features, evaluation = check_evaluation(posterior, eval_features, eval_targets, loss)
    gamma = check_update(step, gamma, link)
    hypotheses = TILE // (batches.shape[1] * max(posterior.mean.shape))
    sums = [
        _summed_losses(posterior, rows, batches[tile], labels[tile], eval_features, evaluation, loss, step, gamma, link)
        for tile in slices(len(batches), hypotheses)
    ]
    means = torch.cat(sums) if sums else eval_features.new_zeros(0, dtype=torch.float64)
    return (means / len(eval_features)).to(posterior.mean.dtype)


def _summed_losses(
    posterior: LastLayerLaplace,
    pool: Pool,
    batches: Tensor,  # [m, b]
    labels: Tensor,  # [m, b]
    eval_features: Tensor,  # [E, D]
    eval_targets: Tensor | None,  # [E]
    loss: str,
    step: str,
    gamma: float,
    link: str,
) -> Tensor:  # [m] float64
    distinct, local = batches.unique(return_inverse=True)
    inner = pool.inner(distinct)
    directions = ops.inner_products(inner, posterior.covariance.mT)
    logits = ops.inner_products(inner, posterior.mean)
    gram = torch.einsum("mbd,mcd->mbc", *(_rows_of_batches(rows, local) for rows in (directions, inner)))
    h, triangle, beta, _ = coefficients(
        gram, logits[local], labels, gamma, step, posterior.curvature, name="pool", rows=batches
    )
    return sum_losses(posterior, directions, local, (h, triangle, beta), eval_features, eval_targets, loss, link)


def _rows_of_batches(
    rows: Tensor,  # [n, D]
    batches: Tensor,  # [m, b] int64
) -> Tensor:  # [m, b, D]
    return rows.index_select(0, batches.flatten()).view(*batches.shape, -1)  # three times as fast as rows[batches]


def sum_losses(
    posterior: LastLayerLaplace,
    directions: Tensor,  # [n, D], inner rows times the covariance
    batches: Tensor,  # [m, b] int64, of directions
    updates: tuple[Tensor, Tensor, Tensor],  # H, T and beta of update_coefficients
    eval_features: Tensor,  # [E, D]
    eval_targets: Tensor | None,  # [E]
    loss: str,
    link: str,
) -> Tensor:  # [m] float64
    """Sum of the losses after each hypothesis, in tiles of evaluation points."""
    h, triangle, beta = updates
    mean_field = link == "mean_field"
    sums = torch.zeros(len(batches), dtype=torch.float64, device=directions.device)
    both = torch.cat([posterior.mean, directions])  # one pass over the points for their logits and their columns
    for tile in slices(len(eval_features), TILE // len(both)):
        points = posterior.inner_features(eval_features[tile])
        products = ops.inner_products(both, points)
        logits, columns = products.split([posterior.num_classes, len(directions)])
        # Columns that are not finite make every loss NaN but the error of a label: others spare a pass over them.
        check_overflow("eval_features", products if loss == "zero_one" else logits)
        variance = ops.predictive_variance(points, posterior.covariance) if mean_field else None
        if variance is not None:
            check_variance(variance, points, posterior.covariance, "eval_features", tile.start)
        sums += ops.lookahead_loss(
            logits,
            columns,
            batches,
            h,
            triangle if mean_field else None,
            beta if mean_field else None,
            variance,
            None if eval_targets is None else eval_targets[tile],
            loss,
            MEAN_FIELD_FACTOR if mean_field else 0.0,
        )
        del points, products, logits, columns  # before the next tile asks for as much
    check_overflow("eval_features", sums)
    return sums


def slices(count: int, size: int) -> Iterator[slice]:
    """Cut ``count`` rows into tiles of at most ``size``, or of one.

    Of many, a multiple of 32: then rows of products with a tile begin at cache lines.
    """
    size = max(1, size)
    size -= size % _ALIGNED if size > _ALIGNED else 0
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _check_batches(batches: Tensor, pool: Pool) -> None:
    if batches.shape[1] == 0:
        raise ValueError(f"batches must hold at least one row each, got {shape_text(batches.shape)}")
    if batches.device != pool.storage.device:
        raise ValueError(f"batches must be on {pool.storage.device} like pool, got {batches.device}")
    check_index_range("batches", batches, pool.size, f"[0, {pool.size}), one of the rows of pool")
    ordered = batches.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if bool(twice.any()):
        raise ValueError(f"batches must not hold a row twice, got batch {int(twice.int().argmax())} with one")


def _labels_of_batches(targets: Array, batches: Tensor, pool: Pool, num_classes: int) -> Tensor:
    labels = as_labels("targets", targets, pool.storage.device)
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


def check_evaluation(
    posterior: LastLayerLaplace, eval_features: Array, eval_targets: Array | None, loss: str
) -> tuple[Tensor, Tensor | None]:  # [E, D], [E]
    """Check where and how a loss is taken; return the points and the labels it needs, None for an expected loss."""
    check_choice("loss", loss, LOSSES)
    eval_features = posterior.check_features(eval_features, name="eval_features", nonempty=True)
    expected = loss in EXPECTED_LOSSES
    if eval_targets is not None:
        labels = posterior.check_targets(eval_targets, len(eval_features), name="eval_targets")
        return eval_features, None if expected else labels
    if not expected:
        raise ValueError(f"eval_targets must be given for loss={loss!r}; {' and '.join(EXPECTED_LOSSES)} need none")
    return eval_features, None


def check_update(step: str, gamma: float, link: str) -> float:
    """Check how labels are absorbed and seen; return gamma as a float."""
    check_choice("step", step, STEPS)
    check_choice("link", link, LINKS)
    return check_number("gamma", gamma, at_least=0.0)
