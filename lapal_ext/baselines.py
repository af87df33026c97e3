"""Other ways to absorb new labels, for comparison with ``LastLayerLaplace.update``.

``first_order`` and ``monte_carlo`` are the two baselines of Huseljic et al., arXiv 2210.06112. The rule of their
official code, gaussian curvature and a factor gamma on the gradient, is a setting of ``update``:

    LastLayerLaplace.fit_map(x, y, C, curvature="gaussian").update(x_new, y_new, step="newton", gamma=10.0)

Their gamma was 10 (default), 15 (active learning) and 0.05 (Banking77): it has to be tuned for each data set. Two
faults of the published code are not reproduced here. Its chained updates all start from the initial precision, so each
one loses the effect of those before it. Its updates do not change the bias of the layer.
"""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.entries import entry
from lapal_ext.errors import NotPSDError
from lapal_ext.likelihood import residual
from lapal_ext.posterior.arguments import check_features, check_targets
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, check_posterior
from lapal_ext.posterior.updating import steps_overflow
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.scalars import check_generator, check_integer, check_number
from lapal_ext.validation.tensors import check_overflow, is_finite

_CHUNK = 1 << 22  # numbers in the largest temporary, 16 MiB in float32


@entry
@torch.no_grad()
def first_order(
    posterior: LastLayerLaplace,
    features: Array,  # [n, D]
    targets: Array,  # [n]
    gamma: float = 1e-3,
) -> LastLayerLaplace:
    """Return a posterior whose mean took one gradient step: W + gamma sum_n (e_y - softmax(W phi_n)) phi_n^T.

    The covariance does not change, so the labels do not reduce the uncertainty. gamma takes the place of the covariance
    in an update and must be tuned to the scale of the features; the paper uses 1e-3 to 5e-3.

    Args:
        posterior: not modified.
        features: [n, D].
        targets: labels in [0, C), [n].
        gamma: learning rate, >= 0.

    Raises:
        ValueError, TypeError: an argument is invalid, or overflows.
        NotFittedError: ``fit`` has not been called.

    Source: arXiv 2210.06112, the first-order baseline of its experiments.
    """
    check_posterior(posterior)
    features = check_features(posterior, features)
    labels = check_targets(posterior, targets, features.shape[0])
    gamma = check_number("gamma", gamma, at_least=0.0)
    x = posterior.standardization.standardized(features)
    gradient = residual(x @ posterior.mean.T, labels).T @ x
    check_overflow("features", gradient)
    mean = posterior.mean + gamma * gradient
    if not is_finite(mean):
        raise steps_overflow(mean, gamma)
    moved = posterior.clone()
    moved.mean = mean
    return moved


@entry
@torch.no_grad()
def monte_carlo(
    posterior: LastLayerLaplace,
    features: Array,  # [n, D]
    targets: Array,  # [n]
    eval_features: Array,  # [E, D]
    gamma: float = 1.0,
    n_samples: int = 1000,
    generator: torch.Generator | None = None,
) -> Tensor:  # [E, C]
    """Predictive probabilities after reweighting samples of the weights by the likelihood of the new labels.

    With W_s drawn from the posterior and l_s = gamma sum_n log softmax(W_s phi_n)_{y_n}, the result is
    sum_s softmax(W_s phi) exp(l_s) / sum_s exp(l_s). The samples come from the old posterior. With more than a few
    labels one sample has all the weight, and the result is that of a single draw. A gamma < 1 delays this; the paper
    uses 1e-2 to 5e-2.

    Args:
        posterior: not modified.
        features: [n, D]; n = 0 gives the plain Monte Carlo predictive.
        targets: labels in [0, C), [n].
        eval_features: [E, D].
        gamma: power of the likelihood, >= 0.
        n_samples: S >= 1.
        generator: on the device of the posterior.

    Returns:
        [E, C]. O(S C (D^2 + (n + E) D)), in chunks of samples; [S, E, C] is never stored.

    Raises:
        ValueError, TypeError: an argument is invalid, or overflows.
        NotFittedError: ``fit`` has not been called.
        NotPSDError: the covariance is not positive definite.

    Source: arXiv 2210.06112, the Monte Carlo baseline of its experiments.
    """
    check_posterior(posterior)
    features = check_features(posterior, features)
    labels = check_targets(posterior, targets, features.shape[0])
    eval_features = check_features(posterior, eval_features, name="eval_features")
    gamma = check_number("gamma", gamma, at_least=0.0)
    n_samples = check_integer("n_samples", n_samples, at_least=1)
    check_generator("generator", generator, posterior.mean.device)
    x, points = posterior.standardization.standardized(features), posterior.standardization.standardized(eval_features)
    root = _root(posterior.covariance)
    n_classes, n_features = posterior.mean.shape
    result = torch.zeros(len(points), n_classes, dtype=torch.float64, device=root.device)
    total, highest = result.new_zeros(()), result.new_full((), -torch.inf)
    size = max(1, _CHUNK // (n_classes * max(n_features, len(x), len(points))))
    for start in range(0, n_samples, size):
        count = min(size, n_samples - start)
        noise = [  # one by one, so that the samples do not depend on the size of a chunk
            torch.randn(n_classes, n_features, generator=generator, dtype=root.dtype, device=root.device)
            for _ in range(count)
        ]
        weights = posterior.mean + torch.stack(noise) @ root.T  # [m, C, D]
        log_p = (x @ weights.mT).log_softmax(2).gather(2, labels[None, :, None].expand(count, -1, 1))  # [m, n, 1]
        check_overflow("features", log_p)
        log_weight = gamma * log_p.double().sum((1, 2))
        if not is_finite(log_weight):
            raise ValueError(f"gamma must leave the weights of the samples finite, got {gamma:g}")
        # Weights are relative to the largest so far, since the weights themselves may underflow.
        peak = torch.maximum(highest, log_weight.max())
        shares = (log_weight - peak).exp()
        shrunk = (highest - peak).exp()
        products = ops.inner_products(points, weights.flatten(0, 1))
        p = products.view(len(points), count, n_classes).softmax(2)  # [E, m, C]
        result = result * shrunk + torch.einsum("m,emc->ec", shares.to(p.dtype), p)
        total, highest = total * shrunk + shares.sum(), peak
    probabilities = (result / total).to(posterior.mean.dtype)
    check_overflow("eval_features", probabilities)
    return probabilities


def _root(
    covariance: Tensor,  # [D, D]
) -> Tensor:  # [D, D]
    """Lower triangle L with L L^T = Sigma."""
    root: Tensor
    root, info = torch.linalg.cholesky_ex(covariance.double())
    if int(info) != 0:
        raise NotPSDError("covariance is not positive definite to working accuracy: refresh() the posterior")
    return root.to(covariance.dtype)
