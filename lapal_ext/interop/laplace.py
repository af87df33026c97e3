"""From a last-layer approximation of laplace-torch to a posterior that absorbs labels."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lapal_ext.errors import NotFittedError
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

try:
    from laplace import LLLaplace
except ImportError as error:
    raise ImportError(
        f'lapal_ext.interop.laplace needs laplace-torch: pip install "lapal_ext[laplace]" ({error})'
    ) from error


@torch.no_grad()
def from_laplace(
    la: LLLaplace,
    loader: Iterable[Any],
    prior_precision: float | None = None,
    curvature: str = "categorical",
) -> LastLayerLaplace:
    """Take layer, prior precision and features of a fitted last-layer Laplace, and fit our own covariance to them.

    The mean is the same, and so are the ``plugin`` predictions. The posterior is not, and is not claimed to be: there
    the covariance is over all C D weights, as ``hessian_structure`` has it; here all classes share one covariance
    [D, D] with a bound on the softmax curvature, which is what makes an update closed. Features are not standardised,
    so that the prior precision means what it meant there.

    Args:
        la: ``Laplace(model, "classification", subset_of_weights="last_layer", ...)``, fitted; its Hessian plays no part
            and may have any structure but ``gp``.
        loader: batches of the training data, as for ``la.fit``: pairs (inputs, targets) or mappings. Targets are not
            looked at. Every batch goes through the network once; all features [N, D] are kept until the end.
        prior_precision: lambda > 0; by default that of ``la``, which must then be one number, or the same number for
            all its weights: one covariance for all classes has one lambda.
        curvature: ``categorical`` or ``gaussian``.

    Returns:
        A posterior on the features of the layer, on its device and in its dtype.

    Raises:
        TypeError: ``la`` is no last-layer Laplace.
        ValueError: it has what this posterior does not: another likelihood, a prior mean, a temperature, several prior
            precisions; or the features do not fit the layer.
        NotFittedError: ``la`` has not been fitted.
    """
    if not isinstance(la, LLLaplace):
        raise TypeError(f"la must be made with subset_of_weights='last_layer', got {type(la).__name__}")
    if la.likelihood != "classification":
        raise ValueError(f"la must have the likelihood 'classification', got {str(la.likelihood)!r}")
    if la.n_data == 0:
        raise NotFittedError("la must be fitted: call la.fit(loader)")
    if la.temperature != 1.0:
        raise ValueError(f"la must have the temperature 1, got {la.temperature:g}")
    if bool(torch.as_tensor(la.prior_mean).any()):
        raise ValueError("la must have the prior mean 0, got others")
    layer = la.model.last_layer
    precision = _one_number(la.prior_precision) if prior_precision is None else prior_precision
    posterior = LastLayerLaplace(layer.weight, precision, curvature, bias=layer.bias)
    la.model.eval()
    features = [_features(la, batch, layer.weight.device) for batch in loader]
    if not features:
        raise ValueError("loader must hold at least one batch, got none")
    return posterior.fit(torch.cat(features))


def _one_number(prior_precision: Tensor) -> float:
    first = float(prior_precision[0])
    if not bool((prior_precision == first).all()):
        low, high = (float(bound) for bound in prior_precision.aminmax())
        raise ValueError(
            f"prior_precision must be given where la has several, got {len(prior_precision)} from {low:g} to {high:g}"
        )
    return first


def _features(la: LLLaplace, batch: Any, device: torch.device) -> Tensor:  # [n, D]
    inputs = batch if isinstance(batch, Mapping) else batch[0].to(device)
    features: Tensor = la.model.forward_with_features(inputs)[1]
    return features
