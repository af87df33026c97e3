"""Conversion of a last-layer approximation of laplace-torch to a posterior that absorbs labels."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lapal_ext.entries import entry
from lapal_ext.errors import NotFittedError
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

try:
    from laplace import LLLaplace
except ImportError as error:
    raise ImportError(
        f'lapal_ext.interop.laplace needs laplace-torch: pip install "lapal_ext[laplace]" ({error})'
    ) from error


@entry
@torch.no_grad()
def from_laplace(
    la: LLLaplace,
    loader: Iterable[Any],
    prior_precision: float | None = None,
    curvature: str = "categorical",
) -> LastLayerLaplace:
    """Make a posterior with the layer and prior precision of a fitted last-layer Laplace, and fit its covariance.

    The mean and the ``plugin`` predictions are the same. The covariance is not: that of laplace-torch is over all C D
    weights, with the structure ``hessian_structure``. Here all classes share one covariance [D, D] with a bound on the
    softmax curvature, which makes updates closed-form. Features are not standardised, so that the prior precision keeps
    its meaning.

    Args:
        la: ``Laplace(model, "classification", subset_of_weights="last_layer", ...)``, fitted; its Hessian is not used
            and may have any structure but ``gp``.
        loader: batches of the training data, as for ``la.fit``: pairs (inputs, targets) or mappings. Targets are
            ignored. Every batch goes through the network once; all features [N, D] are kept until the end.
        prior_precision: lambda > 0; by default that of ``la``, which must then be the same for all its weights, since
            one covariance for all classes has one lambda.
        curvature: ``categorical`` or ``gaussian``.

    Returns:
        A posterior on the features of the layer, on its device and in its dtype.

    Raises:
        TypeError: ``la`` is not a last-layer Laplace.
        ValueError: it has a setting that this posterior does not support (another likelihood, a prior mean, a
            temperature, several prior precisions), or the features do not fit the layer.
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
    if bool(torch.as_tensor(la.prior_mean, device="cpu").any()):
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
