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
_LEAST_ROWS = 20  # fewer held-out rows say too little
_BELIEVED = 15.0  # rows by which T = 1 counts, as if the model were right about its own probabilities
_BOUNDS = (0.25, 4.0)  # of T
_HALVINGS = 40  # of the interval of log T


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
    that were left out. Rows whose class has no other label count for nothing: no model without them can be right. Since
    few rows say little, the plugin probabilities at T = 1 count as 15 more rows:

        T = argmin - sum_i log softmax(z_i / T)_{y_i} - 15 / n sum_i sum_k softmax(z_i)_k log softmax(z_i / T)_k

    Args:
        prior: the model before all labels, as ``LastLayerLaplace.untrained`` makes it; not modified.
        features: the labelled rows, [N, D].
        targets: their labels, [N].
        generator: for the folds, and for the sample of 1,000 rows if there are more; seed 0 by default.

    Returns:
        T in [0.25, 4], or 1 if fewer than 20 rows can be held out.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Source: Guo et al. (2017), "On Calibration of Modern Neural Networks", arXiv 1706.04599; the folds are ours. The
    cost is O(D^3) and ten small fits.
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
    logits, labels = _held_out(prior, x, y, generator)
    if len(labels) < _LEAST_ROWS:
        return Calibration(1.0, math.inf)
    temperature = _best_temperature(logits, labels)
    highest = (logits / temperature).softmax(1).max(1)
    surplus = (highest.indices == labels).double() - highest.values
    return Calibration(temperature, float(surplus.std()) / math.sqrt(len(labels)))


def _held_out(
    prior: LastLayerLaplace,
    x: Tensor,  # [N, D]
    y: Tensor,  # [N] int64
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:  # [n, C] float64, [n] int64
    """Logits and labels of rows under the model without them, of those whose class has another label."""
    fold = assign_folds(y, _FOLDS, generator)
    factor, phi = cholesky_factor(prior.covariance), prior.standardization.standardized(x)
    logits, labels = [], []
    for number in range(_FOLDS):
        out = fold == number
        known = torch.isin(y, y[~out]) & out
        if known.any():
            fit = map_weights_from(prior.mean, factor, phi[~out], y[~out], phi.new_ones(int((~out).sum())))
            logits.append(phi[known].double() @ fit.weight.T)
            labels.append(y[known])
    if not labels:
        return x.new_zeros(0, prior.num_classes, dtype=torch.float64), y[:0]
    return torch.cat(logits), torch.cat(labels)


def _best_temperature(
    logits: Tensor,  # [n, C] float64
    labels: Tensor,  # [n] int64
) -> float:
    """The minimiser, by bisection of the slope: the objective is convex in 1 / T."""
    share = _BELIEVED / len(labels)
    given = logits.gather(1, labels[:, None])[:, 0] + share * (logits.softmax(1) * logits).sum(1)
    low, high = _BOUNDS
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        expected = ((logits / middle).softmax(1) * logits).sum(1)
        # The derivative with respect to 1 / T is positive where the probabilities are too high.
        low, high = (middle, high) if float(((1.0 + share) * expected - given).sum()) > 0.0 else (low, middle)
    return float((low * high) ** 0.5)
