"""How well a prior precision fits the data: Laplace evidence and cross-validation."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext.likelihood import curvature_weight
from lapal_ext.posterior.arguments import LabelledFeatures, check_prior_precisions
from lapal_ext.posterior.map_fit import TOLERANCE, map_weights
from lapal_ext.posterior.precision import add_observations
from lapal_ext.posterior.softmax_fit.objective import Fit
from lapal_ext.posterior.standardization import Standardization, Standardize, fit_standardization
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.scalars import check_generator, check_integer
from lapal_ext.validation.tensors import check_overflow, shape_text

_FOLDS = 5


def log_evidence(
    features: Iterator[Tensor],  # tiles [n, D], standardised
    targets: Tensor,  # [N] int64
    weight: Tensor,  # [C, D]
    prior_precisions: Tensor,  # [P] float64
    curvature: str,
) -> Tensor:  # [P] float64
    """Laplace evidence of each prior precision lambda at the weights given, in float64.

    sum_n log p(y_n | W phi_n) - lambda/2 |W|^2 + C/2 sum_i (log lambda - log(lambda + e_i)), where e_i are the
    eigenvalues of sum_n s_n phi_n phi_n^T, computed once for all prior precisions. The factors of 2 pi of the prior and
    of the integral cancel. O(N D^2 + D^3 + P D).
    """
    mean = weight.double()
    gram = mean.new_zeros(mean.shape[1], mean.shape[1])
    log_likelihood = mean.new_zeros(())
    start = 0
    for tile in features:
        x = tile.double()
        logits = x @ mean.T
        labels = targets[start : start + len(x)]
        start += len(x)
        log_likelihood += logits.log_softmax(1).gather(1, labels[:, None]).sum()
        gram = add_observations(gram, x, curvature_weight(logits, curvature))
    check_overflow("features", gram)
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0.0)
    occam = -(eigenvalues / prior_precisions[:, None]).log1p().sum(1)
    evidence: Tensor = log_likelihood - 0.5 * prior_precisions * mean.square().sum() + 0.5 * len(mean) * occam
    return evidence


def fit_layer(
    data: LabelledFeatures,
    prior_precision: float,
    *,
    fit_bias: bool,
    standardize: Standardize,
    start: tuple[Tensor, Tensor] | None = None,  # [C, D], [C]
    tolerance: float = TOLERANCE,
) -> tuple[Fit, Standardization]:
    """Return the MAP weights [C, D] or [C, D + 1] of standardised features, and the standardisation.

    Args:
        data: the training data.
        prior_precision: lambda > 0.
        fit_bias: whether the last column of the weights is a bias.
        standardize: as for ``fit_standardization``.
        start: weights and offsets for raw features at which the fit begins; None is zero.
        tolerance: as for ``map_weights``.
    """
    standardization = fit_standardization(
        data.features, has_bias=fit_bias, standardize=standardize, weights=data.weights
    )
    x = standardization.standardized(data.features)
    fit = map_weights(
        x,
        data.labels,
        data.num_classes,
        prior_precision,
        trust=data.weights,
        start=None if start is None else standardization.of_raw(*start),
        tolerance=tolerance,
    )
    return fit, standardization


def best_prior_precision(
    data: LabelledFeatures,
    prior_precisions: Array | None,  # [P]
    n_folds: int | None,
    *,
    fit_bias: bool,
    standardize: Standardize,
    generator: torch.Generator | None,
) -> tuple[float, str]:
    """The prior precision with the best held-out loss, and the text of a warning if it is the least or the largest.

    See ``LastLayerLaplace.optimize_prior_precision``.
    """
    n_rows = len(data.labels)
    if n_rows < 2:
        shape = shape_text(data.features.shape)
        raise ValueError(f"features must have at least two rows to hold some out, got {shape}")
    if prior_precisions is None:
        prior_precisions = torch.logspace(-2.0, 3.0, 11, dtype=torch.float64, device="cpu")
    grid = check_prior_precisions("prior_precisions", prior_precisions, data.features.dtype)
    if grid.dim() != 1 or len(grid) == 0:
        raise ValueError(f"prior_precisions must have shape (P,) with P >= 1, got {shape_text(grid.shape)}")
    n_folds = min(_FOLDS, n_rows) if n_folds is None else n_folds
    n_folds = check_integer("n_folds", n_folds, at_least=2, at_most=n_rows, limit="the rows of features")
    check_generator("generator", generator)
    fold = assign_folds(data.labels, n_folds, generator)
    losses = held_out_losses(data, grid.tolist(), fold, fit_bias=fit_bias, standardize=standardize)
    best, low, high = float(grid[losses.argmin()]), float(grid.min()), float(grid.max())
    if best not in (low, high) or low == high:
        return best, ""
    beyond = "smaller" if best == low else "larger"
    return best, (
        f"optimize_prior_precision found the best value, {best:g}, at the edge of those that it tried, {low:g} to "
        f"{high:g}: pass prior_precisions with {beyond} ones"
    )


def held_out_losses(
    data: LabelledFeatures,
    prior_precisions: list[float],
    fold: Tensor,  # [N] int64, the fold of each row
    *,
    fit_bias: bool,
    standardize: Standardize,
) -> Tensor:  # [P] float64
    """Negative log-likelihood of every fold under the weights fitted to the others, summed over all rows."""
    losses = torch.zeros(len(prior_precisions), dtype=torch.float64, device="cpu")
    for number in fold.unique().tolist():
        out = fold == number
        start: tuple[Tensor, Tensor] | None = None
        # From the strongest prior to the weakest, each fit begins where the last one ended.
        for place in sorted(range(len(prior_precisions)), key=lambda place: -prior_precisions[place]):
            fit, standardization = fit_layer(
                data.only(~out), prior_precisions[place], fit_bias=fit_bias, standardize=standardize, start=start
            )
            start = standardization.raw(fit.weight.to(data.features.dtype))
            weights, offsets = start
            logits = torch.addmm(offsets, data.features[out], weights.T).double()
            check_overflow("features", logits)
            losses[place] += torch.nn.functional.cross_entropy(logits, data.labels[out], reduction="sum").item()
    check_overflow("features", losses)
    return losses


def assign_folds(
    labels: Tensor,  # [N] int64
    n_folds: int,
    generator: torch.Generator | None,
) -> Tensor:  # [N] int64
    """Assign the rows of each class to folds at random, so that all folds have similar shares of every class."""
    device = labels.device if generator is None else generator.device
    order = torch.randperm(len(labels), generator=generator, device=device).to(labels.device)
    order = order[labels[order].sort(stable=True).indices]
    fold = torch.empty_like(labels)
    fold[order] = torch.arange(len(labels), device=labels.device) % n_folds
    return fold
