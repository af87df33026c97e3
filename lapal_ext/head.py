"""The linear layer a posterior is about: its mean weights, its bias, and the standardising of its inputs."""

import torch
from torch import Tensor, nn

from lapal_ext import fitting
from lapal_ext._checks import (
    ShapeSpec,
    as_labels,
    check_dense,
    check_finite,
    check_labels,
    check_overflow,
    check_tensors,
    shape_text,
)

_WEIGHT, _BIAS = ShapeSpec.parse("[C, D]"), ShapeSpec.parse("[C]")
_MEAN = ShapeSpec.parse("[C, inner]")


def check_layer(weight: object, bias: object, *, prefix: str = "") -> None:
    """Raise a typed error unless these make a linear layer; ``prefix`` leads to them in the message."""
    weight_name, bias_name = f"{prefix}weight", f"{prefix}bias"
    weight = check_dense(weight_name, weight)
    sizes = check_tensors({weight_name: _WEIGHT}, {weight_name: weight})
    if sizes["C"] < 2 or sizes["D"] < 1:
        raise ValueError(f"{weight_name} must have at least 2 classes and 1 feature, got {shape_text(weight.shape)}")
    check_finite(weight_name, weight)
    if bias is not None:
        bias = check_dense(bias_name, bias)
        check_tensors({weight_name: _WEIGHT, bias_name: _BIAS}, {weight_name: weight, bias_name: bias})
        check_finite(bias_name, bias)


class StandardizedLinear(nn.Module):
    """Logits W (phi - centre) scale + bias, with the bias kept as one more column of ``mean``.

    Outer features [N, D] are what callers pass. Inner features are what the mathematics sees: centred, scaled, and with
    a constant one appended where there is a bias.
    """

    mean: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        weight: Tensor,  # [C, D]
        bias: Tensor | None,  # [C]
    ) -> None:
        super().__init__()
        check_layer(weight, bias)
        columns = [weight.detach()]
        if bias is not None:
            columns.append(bias.detach()[:, None])
        self.has_bias = bias is not None
        self.register_buffer("mean", torch.cat(columns, 1).clone())
        self.register_buffer("centre", self.mean.new_zeros(weight.shape[1]))
        self.register_buffer("scale", self.mean.new_ones(()))

    @property
    def num_classes(self) -> int:
        """C."""
        return self.mean.shape[0]

    @property
    def num_features(self) -> int:
        """D, without the bias."""
        return self.centre.shape[0]

    @torch.no_grad()
    def predict_logits(
        self,
        features: Tensor,  # [N, D]
    ) -> Tensor:  # [N, C]
        """Mean of the logits alone, z = W phi; needs no covariance."""
        self.check_features(features)
        weights, offsets = self.fold(self.mean)
        logits = torch.addmm(offsets, features, weights.T)
        check_overflow("features", logits)
        return logits

    def to_linear(self) -> nn.Linear:
        """Return the mean as a plain layer on outer features; it has a bias where this one has."""
        weights, offsets = self.fold(self.mean)
        check_overflow("mean", weights, offsets)
        linear: nn.Linear = nn.utils.skip_init(  # a plain nn.Linear draws its weights from the global generator
            nn.Linear, self.num_features, self.num_classes, self.has_bias, device=weights.device, dtype=weights.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(weights)
            if self.has_bias:
                linear.bias.copy_(offsets)
        return linear

    def standardize(
        self,
        features: Tensor,  # [N, D]
    ) -> None:
        """Standardise inputs from now on as these are, and rewrite the mean so that every prediction stays.

        Without a bias there is nothing that could take up the centre, which then stays zero.
        """
        weights, offsets = self.fold(self.mean)
        centre, scale = fitting.standardization(features)
        columns = [weights / scale]
        if self.has_bias:
            columns.append((offsets + weights @ centre)[:, None])
        mean = torch.cat(columns, 1)
        check_overflow("features", mean)
        self.mean, self.scale = mean, scale
        if self.has_bias:
            self.centre = centre

    def inner_features(
        self,
        features: Tensor,  # [N, D]
    ) -> Tensor:  # [N, D] or [N, D + 1]
        """Outer features as the mathematics sees them, in the dtype of ``mean``; always a copy."""
        inner = features.new_empty(features.shape[0], self.mean.shape[1], dtype=self.mean.dtype)
        outer = inner[:, : self.num_features]
        torch.sub(features.detach(), self.centre, out=outer)
        outer *= self.scale
        if self.has_bias:
            inner[:, -1] = 1.0
        return inner

    def fold(
        self,
        rows: Tensor,  # [K, D] or [K, D + 1], inner
    ) -> tuple[Tensor, Tensor]:  # [K, D], [K]
        """Weights and offsets with ``rows @ inner.T == weights @ outer.T + offsets``: a pool is never rewritten."""
        weights = rows[:, : self.num_features] * self.scale
        offsets = -(weights @ self.centre)
        return weights, offsets + rows[:, -1] if self.has_bias else offsets

    def check_features(self, features: Tensor, *, name: str = "features", nonempty: bool = False) -> None:
        """Raise a typed error unless ``features`` fits this layer: shape, dtype, device and finite values."""
        check_dense(name, features)
        expected = ShapeSpec("compute", ("N", str(self.num_features)))
        check_tensors({"mean": _MEAN, name: expected}, {"mean": self.mean, name: features})
        if nonempty and features.shape[0] == 0:
            raise ValueError(f"{name} must have at least one row, got {shape_text(features.shape)}")
        check_finite(name, features)

    def check_targets(self, targets: Tensor, count: int, *, name: str = "targets") -> Tensor:
        """Return ``targets`` as int64 [count] or raise a typed error."""
        labels = as_labels(name, targets, self.mean.device)
        if labels.dim() != 1 or labels.shape[0] != count:
            raise ValueError(f"{name} must have shape ({count},), one label per row, got {shape_text(labels.shape)}")
        check_labels(name, labels, self.num_classes)
        return labels
