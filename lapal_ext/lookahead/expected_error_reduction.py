"""Expected error reduction: the loss that the model would have after one more label, expected over that label."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import EXPECTED_LOSSES, MEAN_FIELD_FACTOR, step_length
from lapal_ext.lookahead.look_ahead import TILE, check_evaluation, check_update, slices, sum_losses
from lapal_ext.pool.files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import coefficients, steps_overflow
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import check_choice, check_overflow, is_finite

_CANDIDATE_SIZE = 1024  # numbers a candidate counts for at least, so that a tile of them leaves room for columns


@torch.no_grad()
def expected_error_reduction(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    eval_features: Array,  # [E, D]
    loss: str = "expected_zero_one",
    step: str = "newton",
    gamma: float = 1.0,
    link: str = "plugin",
) -> Tensor:  # [N]
    """Mean expected loss over the evaluation points after one more label, expected over that label, per candidate.

    With ``step="newton"`` and ``link="plugin"`` all C labels of a candidate share one pass of exponentials,
    O(N E C) instead of O(N E C^2); every other combination takes the O(N E C^2) path.

    Args:
        posterior: a fitted model; stays as it is.
        pool: the candidates, [N, D].
        eval_features: where the loss is taken, [E, D], E >= 1.
        loss: ``expected_zero_one`` or ``expected_cross_entropy``.
        step: ``newton`` or ``line_search``.
        gamma: trust in the label, >= 0.
        link: ``plugin`` or ``mean_field``; also of the probabilities that weigh the labels.

    Returns:
        [N], lower is better.

    Source: Roy and McCallum (2001), "Toward Optimal Active Learning through Sampling Estimation of Error Reduction",
    with the update of arXiv 2210.06112 in place of their retraining; the O(C) form is ours.
    """
    rows = Pool(posterior, pool)
    check_choice("loss", loss, EXPECTED_LOSSES)
    eval_features, _ = check_evaluation(posterior, eval_features, None, loss)
    gamma = check_update(step, gamma, link)
    shared = step == "newton" and link == "plugin"
    width = 1 if shared else posterior.num_classes
    sums = []
    for tile in slices(len(rows), TILE // (width * max(*posterior.mean.shape, _CANDIDATE_SIZE))):
        numbers = torch.arange(tile.start, tile.stop, device=eval_features.device)
        inner = rows.inner(numbers)
        if shared:
            sums.append(_expected_losses_shared(posterior, inner, eval_features, loss, gamma))
        else:
            sums.append(
                _expected_losses_of_each_label(posterior, inner, numbers, eval_features, loss, step, gamma, link)
            )
    means = torch.cat(sums) if sums else eval_features.new_zeros(0, dtype=torch.float64)
    return (means / len(eval_features)).to(posterior.mean.dtype)


def _expected_losses_shared(
    posterior: LastLayerLaplace,
    inner: Tensor,  # [n, D]
    eval_features: Tensor,  # [E, D]
    loss: str,
    gamma: float,
) -> Tensor:  # [n] float64
    """The Newton step is as long for every label, so that one pass serves them all."""
    directions = ops.inner_products(inner, posterior.covariance.mT)
    logits = inner @ posterior.mean.T
    variance = (directions * inner).sum(1)
    check_overflow("pool", logits, variance)
    any_label = torch.zeros(len(inner), dtype=torch.int64, device=inner.device)
    lengths = step_length(logits, variance, any_label, gamma, "newton", posterior.curvature)
    if not bool((variance >= 0).all()):
        raise NotPSDError("covariance is not positive semi-definite along a row of pool: refresh() the posterior")
    if not is_finite(lengths):
        raise steps_overflow(lengths, gamma)
    probabilities = ops.predictive(logits, None, 0.0)
    sums = torch.zeros(len(inner), dtype=torch.float64, device=inner.device)
    both = torch.cat([posterior.mean, directions])  # one pass over the points for their logits and their columns
    for tile in slices(len(eval_features), TILE // len(both)):
        points = posterior.inner_features(eval_features[tile])
        products = ops.inner_products(both, points)
        at_points, columns = products.split([posterior.num_classes, len(directions)])
        check_overflow("eval_features", at_points)  # columns that are not finite make the losses NaN
        sums += ops.expected_lookahead(at_points, columns, lengths, probabilities, loss)
        del points, products, at_points, columns  # before the next tile asks for as much
    check_overflow("eval_features", sums)
    return sums


def _expected_losses_of_each_label(
    posterior: LastLayerLaplace,
    inner: Tensor,  # [n, D]
    numbers: Tensor,  # [n] int64, of the rows
    eval_features: Tensor,  # [E, D]
    loss: str,
    step: str,
    gamma: float,
    link: str,
) -> Tensor:  # [n] float64
    """Every label of every candidate as a hypothesis of its own, n C of them."""
    n_classes, mean_field = posterior.num_classes, link == "mean_field"
    directions = ops.inner_products(inner, posterior.covariance.mT)
    logits = inner @ posterior.mean.T
    variance = (directions * inner).sum(1)
    local = torch.arange(len(inner), device=inner.device).repeat_interleave(n_classes)[:, None]
    labels = torch.arange(n_classes, device=inner.device).repeat(len(inner))[:, None]
    gram = variance[local][:, :, None]
    h, triangle, beta, _ = coefficients(
        gram, logits[local], labels, gamma, step, posterior.curvature, name="pool", rows=numbers[local]
    )
    updates = (h, triangle, beta)
    sums = sum_losses(posterior, directions, local, updates, eval_features, None, loss, link)
    probabilities = ops.predictive(logits, variance if mean_field else None, MEAN_FIELD_FACTOR)
    return (probabilities.double() * sums.view(len(inner), n_classes)).sum(1)
