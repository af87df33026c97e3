"""Standardised features: centred, scaled, and with a constant one appended if the layer has a bias.

Raw features [N, D] are what callers pass. The mean and the covariance of a posterior belong to standardised features.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lapal_ext.tiles import row_tiles
from lapal_ext.validation.tensors import check_overflow


class Standardization(NamedTuple):
    """The map phi -> (phi - centre) scale, with a one appended if there is a bias; a view of a posterior's buffers."""

    centre: Tensor  # [D]
    scale: Tensor  # []
    has_bias: bool

    def standardized(
        self,
        features: Tensor,  # [N, D] raw
        out: Tensor | None = None,  # [N, D] or [N, D + 1]
    ) -> Tensor:  # [N, D] or [N, D + 1]
        """Standardised features in the dtype of ``centre``; always a copy, in ``out`` if it is given."""
        result = out
        n_features = len(self.centre)
        if result is None:
            shape = (features.shape[0], n_features + self.has_bias)
            result = features.new_empty(shape, dtype=self.centre.dtype)
        columns = result[:, :n_features]
        if features.dtype == result.dtype:
            torch.sub(features.detach(), self.centre, out=columns)
        else:  # a difference of two dtypes would first copy the features to another tensor
            columns.copy_(features.detach()).sub_(self.centre)
        columns.mul_(self.scale)
        if self.has_bias:
            result[:, -1] = 1.0
        return result

    def raw(
        self,
        weights: Tensor,  # [K, D] or [K, D + 1], of standardised features
    ) -> tuple[Tensor, Tensor]:  # [K, D], [K]
        """Weights W and offsets o for raw features: W phi + o equals ``weights`` times the standardised phi.

        With them a product can read a pool of raw features, without a standardised copy.
        """
        raw_weights = weights[:, : len(self.centre)] * self.scale
        offsets = -(raw_weights @ self.centre)
        return raw_weights, offsets + weights[:, -1] if self.has_bias else offsets

    def of_raw(
        self,
        weights: Tensor,  # [K, D]
        offsets: Tensor,  # [K]
    ) -> Tensor:  # [K, D] or [K, D + 1]
        """Inverse of ``raw``. Without a bias the offsets must be those of the centre alone."""
        columns = [weights / self.scale]
        if self.has_bias:
            columns.append((offsets + weights @ self.centre)[:, None])
        return torch.cat(columns, 1)


def fit_standardization(
    features: Tensor,  # [N, D] raw
    *,
    has_bias: bool,
) -> Standardization:
    """Centre and one global scale with which these features have mean zero and mean square one.

    One scale for all columns keeps their relative sizes, which the encoder has learned; the prior precision and gamma
    then have the same meaning for every feature set. The scale is one if all features are constant. Without a bias the
    centre is zero, since only a bias can compensate for it. Computed in float64: it happens once per model, and every
    later update inherits its error.

    Raises:
        ValueError: the features overflow.
    """
    n_rows, n_features = features.shape
    tiles = list(row_tiles(n_rows))
    centre = sum((features[tile].double().sum(0) for tile in tiles), features.new_zeros(n_features).double()) / n_rows
    squares = sum(((features[tile].double() - centre).square().sum() for tile in tiles), centre.new_zeros(()))
    deviation = (squares / (n_rows * n_features)).sqrt()
    scale = torch.where(deviation > 0, deviation.reciprocal(), 1.0).to(features.dtype)
    check_overflow("features", deviation, scale)
    centre = centre.to(features.dtype)
    return Standardization(centre if has_bias else torch.zeros_like(centre), scale, has_bias)


class StandardizedLayer(Protocol):
    """A layer that standardises its inputs; ``standardize`` replaces its mean, centre and scale."""

    mean: Tensor
    centre: Tensor
    scale: Tensor
    has_bias: bool


def standardize(
    layer: StandardizedLayer,
    features: Tensor,  # [N, D] raw
) -> None:
    """Set the centre and scale of a layer to those of ``features``; rewrite its mean so that predictions do not change.

    Raises:
        ValueError: the result overflows; the layer is unchanged.
    """
    before = Standardization(layer.centre, layer.scale, layer.has_bias)
    after = fit_standardization(features, has_bias=layer.has_bias)
    mean = after.of_raw(*before.raw(layer.mean))
    check_overflow("features", mean)
    layer.mean, layer.centre, layer.scale = mean, after.centre, after.scale
