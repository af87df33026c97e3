"""A temperature for probabilities that people read: softmax(z / T) with T fitted to held-out labels."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.entries import entry
from lapal_ext.posterior.arguments import check_features, check_targets
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.map_fit import cholesky_factor, map_weights_from
from lapal_ext.posterior.prior_search import assign_folds
from lapal_ext.validation.arrays import Array, Labels
from lapal_ext.validation.scalars import check_generator

_FOLDS = 10
_MOST_ROWS = 1000  # with more labels, a sample of them gives the temperature
_LEAST_ROWS = 20  # from fewer held-out rows no error can be told
_SUGGESTED, _UNCHANGED = 40.0, 15.0  # rows that T_0 and T = 1 count as
_OWN = 3.0  # T_0 counts in full if a third of the logits of labelled rows is due to their own labels
_BEYOND = 4.0  # factor by which T may be below or above both
_HALVINGS = 45  # of the interval of log T
_LEAST_LOSS = 1e-12  # of a labelled row, since log(1 - pbar) needs one
_LEAST_EXCESS = 1e-4  # g; what is less may be rounding


class Calibration(NamedTuple):
    """How far the probabilities softmax(z / T) of a model may be believed.

    Attributes:
        temperature: T.
        error: standard error of the mean over held-out rows of (label predicted right) - (highest probability), which
            is infinite with fewer than 20 of them.
    """

    temperature: float
    error: float


@entry
def fit_temperature(
    prior: LastLayerLaplace,
    features: Array,  # [N, D]
    targets: Labels,  # [N]
    generator: torch.Generator | None = None,
) -> float:
    """Return the temperature T with which softmax(z / T) predicts held-out labels best.

    The model is fitted anew without each tenth of the labels, and T minimises the negative log-likelihood of the n rows
    that were left out. Rows whose class has no other label count for nothing: no model without them can be right. Few
    rows say little, and labelled rows are not like others if a strategy chose them. Hence a temperature T_0 that needs
    no held-out labels counts as 40 w more rows, and T = 1 as 15 (1 - w), with 0 <= w <= 1:

        T = argmin sum_i [H_i(y_i) + 40 w / n H_i(softmax(z_i / T_0)) + 15 (1 - w) / n H_i(softmax(z_i))],
        H_i(q) = - sum_k q_k log softmax(z_i / T)_k

    Let pbar be the geometric mean of the probabilities that the model with all labels gives to these. The logit of the
    right class then exceeds the others by g = log(pbar / (1 - pbar)) + log(C - 1) at a labelled row, and by g / 2 at a
    row that is half as similar to the label, if no other label is similar. T_0 puts the probability of the class there
    half-way between chance and certainty, at (1 + 1 / C) / 2:

        T_0 = g / (2 log(C + 1))

    T is looked for in [min(T_0, 1) / 4, 4 max(T_0, 1)], so few rows cannot move it far from both.

    The excess of the most likely class over the others at a held-out row is r times that with its own label, on
    average. w = min(1, 3 (1 - r)): where the own label changes nothing, as with features that say nothing, a row is
    similar to all labels and T_0 means nothing.

    Args:
        prior: the model before all labels, as ``LastLayerLaplace.untrained`` makes it; not modified.
        features: the labelled rows, [N, D].
        targets: their labels, [N].
        generator: for the folds, and for the sample of 1,000 rows if there are more; seed 0 by default.

    Returns:
        T, which is T_0 if no row can be held out, and 1 without labels.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", arXiv 1706.04599; the folds and T_0 are ours.
    The cost is O(D^3) and eleven small fits.
    """
    return calibrate(prior, features, targets, generator).temperature


@entry
@torch.no_grad()
def calibrate(
    prior: LastLayerLaplace,
    features: Array,  # [N, D]
    targets: Labels,  # [N]
    generator: torch.Generator | None = None,
) -> Calibration:
    """Return the temperature of ``fit_temperature``, and how well the held-out labels agree with it.

    Arguments, errors and cost are those of ``fit_temperature``.
    """
    x = check_features(prior, features)
    y = check_targets(prior, targets, len(x))
    check_generator("generator", generator)
    generator = torch.Generator(device="cpu").manual_seed(0) if generator is None else generator
    if len(x) > _MOST_ROWS:
        kept = torch.randperm(len(x), generator=generator, device=generator.device)[:_MOST_ROWS].to(x.device)
        x, y = x[kept], y[kept]
    if len(x) == 0:
        return Calibration(1.0, math.inf)
    factor, phi = cholesky_factor(prior.covariance), prior.standardization.standardized(x)
    logits = _logits(prior.mean, factor, phi, y, phi)
    suggested = _suggested_temperature(logits, y)
    held_out, known = _held_out(prior.mean, factor, phi, y, generator)
    left_out, labels = held_out[known], y[known]
    if len(labels) == 0:
        return Calibration(suggested, math.inf)
    ratio = float(_excess(left_out).sum() / _excess(logits[known]).sum().clamp(min=torch.finfo(logits.dtype).tiny))
    weight = min(1.0, max(0.0, _OWN * (1.0 - ratio)))
    temperature = _best_temperature(left_out, labels, suggested, weight)
    if len(labels) < _LEAST_ROWS:
        return Calibration(temperature, math.inf)
    highest = (left_out / temperature).softmax(1).max(1)
    surplus = (highest.indices == labels).double() - highest.values
    return Calibration(temperature, float(surplus.std()) / math.sqrt(len(labels)))


def _suggested_temperature(
    logits: Tensor,  # [N, C] float64
    labels: Tensor,  # [N] int64
) -> float:
    """T_0 of ``fit_temperature``; 1 if the model knows its own labels no better than chance does."""
    num_classes = logits.shape[1]
    loss = max(float(torch.nn.functional.cross_entropy(logits, labels)), _LEAST_LOSS)  # -log pbar
    excess = math.log(num_classes - 1) - loss - math.log(-math.expm1(-loss))
    return excess / (2.0 * math.log(num_classes + 1)) if excess > _LEAST_EXCESS else 1.0


def _excess(
    logits: Tensor,  # [n, C] float64
) -> Tensor:  # [n]
    """By how much the largest logit exceeds the others, whose mean is that of exp."""
    order = logits.sort(1, descending=True).values
    return order[:, 0] - order[:, 1:].logsumexp(1) + math.log(logits.shape[1] - 1)


def _held_out(
    mean: Tensor,  # [C, D]
    factor: Tensor,  # [D, D] float64
    phi: Tensor,  # [N, D], standardised
    y: Tensor,  # [N] int64
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # [N, C] float64, [N] bool
    """Logits of rows under the model without them, and of which rows: those whose class has another label."""
    fold = assign_folds(y, _FOLDS, generator)
    logits = phi.new_zeros(len(phi), len(mean), dtype=torch.float64)
    held_out = torch.zeros_like(y, dtype=torch.bool)
    for number in range(_FOLDS):
        out = fold == number
        known = torch.isin(y, y[~out]) & out
        if known.any():
            logits[known] = _logits(mean, factor, phi[~out], y[~out], phi[known])
            held_out |= known
    return logits, held_out


def _logits(
    mean: Tensor,  # [C, D]
    factor: Tensor,  # [D, D] float64
    phi: Tensor,  # [N, D], standardised
    y: Tensor,  # [N] int64
    rows: Tensor,  # [n, D], standardised
) -> Tensor:  # [n, C] float64
    """Logits of rows under the model that is fitted to these labels."""
    fit = map_weights_from(mean, factor, phi, y, phi.new_ones(len(phi)))
    return rows.double() @ fit.weight.T


def _best_temperature(
    logits: Tensor,  # [n, C] float64
    labels: Tensor,  # [n] int64
    suggested: float,
    weight: float,
) -> float:
    """The minimiser, by bisection of the slope: the objective is convex in 1 / T."""
    rows, given = 1.0, logits.gather(1, labels[:, None])[:, 0]
    for count, temperature in ((_SUGGESTED * weight, suggested), (_UNCHANGED * (1.0 - weight), 1.0)):
        share = count / len(labels)
        rows, given = rows + share, given + share * ((logits / temperature).softmax(1) * logits).sum(1)
    low, high = min(suggested, 1.0) / _BEYOND, max(suggested, 1.0) * _BEYOND
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        expected = ((logits / middle).softmax(1) * logits).sum(1)
        # The derivative with respect to 1 / T is positive where the probabilities are too high.
        low, high = (middle, high) if float((rows * expected - given).sum()) > 0.0 else (low, middle)
    return float((low * high) ** 0.5)
