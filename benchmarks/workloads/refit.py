"""What a user would do instead of an update: fit the layer to all labels again, by this package or by scikit-learn."""

from collections.abc import Callable

import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace

_ENOUGH = 10_000  # iterations, so that the tolerance ends the fit


def refit(
    posterior: LastLayerLaplace,
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
) -> Tensor:  # [C, D]
    """Weights of this package's fit, begun at the mean of the posterior."""
    return posterior.refit(features, targets).mean


def scikit_learn(
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n], every class at least once
    prior_precision: float,
    *,
    fit_intercept: bool = False,
    start: Tensor | None = None,  # [C, D]
) -> Tensor:  # [C, D]
    """Weights of scikit-learn's logistic regression at its own tolerance, 1e-4; its penalty is the posterior's prior.

    Args:
        features: with a column of ones, if the bias is to have the penalty too.
        targets: labels.
        prior_precision: lambda.
        fit_intercept: adds a bias without a penalty, which is scikit-learn's default; it is not among the weights.
        start: weights to begin at; None is scikit-learn's default.
    """
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1.0 / prior_precision, fit_intercept=fit_intercept, max_iter=_ENOUGH, warm_start=start is not None
    )
    if start is not None:
        model.coef_ = start.numpy().copy()
    return torch.from_numpy(model.fit(features.numpy(), targets.numpy()).coef_)


def look_ahead(
    refit: Callable[[Tensor, Tensor], Tensor],
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
    pool: Tensor,  # [N, D]
    labels: Tensor,  # [N]
    batches: Tensor,  # [M, b]
    eval_features: Tensor,  # [E, D]
    eval_targets: Tensor,  # [E]
) -> Tensor:  # [M]
    """Mean cross-entropy after a refit with each candidate batch."""
    losses = []
    for batch in batches:
        weight = refit(torch.cat([features, pool[batch]]), torch.cat([targets, labels[batch]]))
        logits = eval_features @ weight.to(eval_features.dtype).T
        losses.append(torch.nn.functional.cross_entropy(logits, eval_targets))
    return torch.stack(losses)
