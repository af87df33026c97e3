"""Expected error reduction: the loss that the model would have after one more label, averaged over that label."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.entries import entry
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import step_length
from lapal_ext.lookahead.evaluation import Evaluation, Hypotheses, check_evaluation, tiles
from lapal_ext.losses import EXPECTED_LOSSES
from lapal_ext.pool.feature_files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import coefficients, steps_overflow
from lapal_ext.rules import UpdateRule, check_rule
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.scalars import check_choice
from lapal_ext.validation.tensors import check_overflow, is_finite

_CANDIDATE_SIZE = 1024  # least numbers that a candidate counts for: a tile of candidates leaves room for columns


@entry
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
        posterior: a fitted model; not modified.
        pool: the candidates, [N, D].
        eval_features: the evaluation points, [E, D], E >= 1.
        loss: ``expected_zero_one`` or ``expected_cross_entropy``.
        step: ``newton`` or ``line_search``.
        gamma: trust in the label, >= 0.
        link: ``plugin`` or ``mean_field``; also for the probabilities of the labels.

    Returns:
        [N], lower is better.

    Source: Roy and McCallum (2001), "Toward Optimal Active Learning through Sampling Estimation of Error Reduction",
    with the update of arXiv 2210.06112 in place of their retraining; the O(C) form is ours.
    """
    rows = Pool(posterior, pool)
    check_choice("loss", loss, EXPECTED_LOSSES)
    evaluation = check_evaluation(posterior, eval_features, None, loss, link)
    rule = check_rule(step, gamma, posterior.curvature)
    shared = rule.step == "newton" and not evaluation.link.uses_variance
    expected_losses = _losses_shared_by_labels if shared else _losses_of_each_label
    width = 1 if shared else posterior.num_classes
    sums = []
    for tile in tiles(len(rows), width * max(*posterior.mean.shape, _CANDIDATE_SIZE)):
        numbers = torch.arange(tile.start, tile.stop, device=posterior.mean.device)
        sums.append(expected_losses(posterior, rows.standardized(numbers), numbers, evaluation, rule))
    means = torch.cat(sums) if sums else posterior.mean.new_zeros(0, dtype=torch.float64)
    return (means / len(evaluation)).to(posterior.mean.dtype)


def _losses_shared_by_labels(
    posterior: LastLayerLaplace,
    x: Tensor,  # [n, D], standardised candidates
    _: Tensor,  # [n] int64
    evaluation: Evaluation,
    rule: UpdateRule,
) -> Tensor:  # [n] float64
    """For the Newton step and plugin probabilities: all labels have the same step length, so one pass serves all."""
    directions = ops.inner_products(x, posterior.covariance.mT)
    logits = x @ posterior.mean.T
    variance = (directions * x).sum(1)
    check_overflow("pool", logits, variance)
    any_label = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    lengths = step_length(logits, variance, any_label, *rule)
    if not bool((variance >= 0).all()):
        raise NotPSDError("covariance is not positive semi-definite along a row of pool: refresh() the posterior")
    if not is_finite(lengths):
        raise steps_overflow(lengths, rule.gamma)
    probabilities = ops.predictive(logits, None, 0.0)
    sums = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    both = torch.cat([posterior.mean, directions])  # one product gives logits and columns
    for tile in tiles(len(evaluation), len(both)):
        points = posterior.standardization.standardized(evaluation.features[tile])
        products = ops.inner_products(both, points)
        at_points, columns = products.split([posterior.num_classes, len(directions)])
        check_overflow("eval_features", at_points)  # columns that are not finite make the losses NaN
        sums += ops.expected_lookahead(at_points, columns, lengths, probabilities, evaluation.loss)
        del points, products, at_points, columns  # before the next tile is allocated
    check_overflow("eval_features", sums)
    return sums


def _losses_of_each_label(
    posterior: LastLayerLaplace,
    x: Tensor,  # [n, D], standardised candidates
    numbers: Tensor,  # [n] int64, of the rows
    evaluation: Evaluation,
    rule: UpdateRule,
) -> Tensor:  # [n] float64
    """Every label of every candidate as a hypothesis of its own, n C of them."""
    n_classes, link = posterior.num_classes, evaluation.link
    directions = ops.inner_products(x, posterior.covariance.mT)
    logits = x @ posterior.mean.T
    variance = (directions * x).sum(1)
    local = torch.arange(len(x), device=x.device).repeat_interleave(n_classes)[:, None]
    labels = torch.arange(n_classes, device=x.device).repeat(len(x))[:, None]
    gram = variance[local][:, :, None]
    h, triangle, beta, _ = coefficients(gram, logits[local], labels, rule, name="pool", rows=numbers[local])
    sums = evaluation.sum_losses(posterior, Hypotheses(directions, local, h, triangle, beta))
    probabilities = ops.predictive(logits, variance if link.uses_variance else None, link.kappa)
    return (probabilities.double() * sums.view(len(x), n_classes)).sum(1)
