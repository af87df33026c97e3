"""The linear layer a posterior is about: its mean weights and bias, its classes, the standardising of its inputs."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lapal_ext.posterior import precision as fitting
from lapal_ext.posterior.class_names import check_class_names, check_new_name
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import (
    COMPUTE_DTYPES,
    ShapeSpec,
    as_dense,
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


def check_layer(weight: object, bias: object, *, prefix: str = "") -> tuple[Tensor, Tensor | None]:  # [C, D], [C]
    """Return weight and bias of a linear layer or raise a typed error; ``prefix`` leads to them in the message."""
    weight_name, bias_name = f"{prefix}weight", f"{prefix}bias"
    weight = as_dense(weight_name, weight)
    sizes = check_tensors({weight_name: _WEIGHT}, {weight_name: weight})
    if sizes["C"] < 2 or sizes["D"] < 1:
        raise ValueError(f"{weight_name} must have at least 2 classes and 1 feature, got {shape_text(weight.shape)}")
    check_finite(weight_name, weight)
    if bias is None:
        return weight, None
    bias = as_dense(bias_name, bias)
    check_tensors({weight_name: _WEIGHT, bias_name: _BIAS}, {weight_name: weight, bias_name: bias})
    check_finite(bias_name, bias)
    return weight, bias


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
        weight: Array,  # [C, D]
        bias: Array | None,  # [C]
        class_names: Iterable[str] | None,  # C of them
    ) -> None:
        super().__init__()
        weight, bias = check_layer(weight, bias)
        columns = [weight.detach()]
        if bias is not None:
            columns.append(bias.detach()[:, None])
        self.has_bias = bias is not None
        self.register_buffer("mean", torch.cat(columns, 1).clone())
        self.register_buffer("centre", self.mean.new_zeros(weight.shape[1]))
        self.register_buffer("scale", self.mean.new_ones(()))
        self.class_names = class_names

    @property
    def num_classes(self) -> int:
        """C."""
        return self.mean.shape[0]

    @property
    def num_features(self) -> int:
        """D, without the bias."""
        return self.centre.shape[0]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the classes are called, in the order of their numbers; None where they have no names."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Iterable[str] | None) -> None:
        self._class_names = check_class_names(names, self.num_classes)

    @torch.no_grad()
    def add_class(self, name: str | None = None) -> Self:
        """Add a class that nobody knew of, as number C, before its first label; in place.

        Its mean row is the mean of the other rows, bias included, so that its logit is the mean of theirs. That is the
        prior's zero: softmax leaves open what is common to all rows, the prior prefers that they sum to zero (as those
        of ``fit_map`` do, and updates keep every sum), and in a layer from elsewhere this row is zero once what is
        common is taken out. Sigma and the precision stay: all classes share them. So before its first label

        - its probability (``plugin``, ``mean_field``) is at most 1 / (C + 1), where all logits are equal, and small
          where they are not;
        - it is never the likeliest class (``argmax`` gives ties to the lowest number);
        - every other p_k is multiplied by 1 - p_new: which class is likeliest, and all odds between them, stay.

        That no row has this label so far counts for nothing: nobody could have given it. Where it does count, because
        the rows were looked at for this class, refit with C + 1 classes.

        Updates move the new row along the Sigma of all classes, which many labels of the others have made narrow:
        behind hundreds of them, a few labels of the new class move little; give those a larger ``gamma``, or refit.

        A ``SequentialSelector`` keeps the classes it began with: begin another one with a posterior that has the new
        class, and load the state of the first into it.

        Args:
            name: of the class, one that no other has; where the classes have names it needs one, else it has none.

        Returns:
            self. ``clone().add_class()`` leaves this posterior as it is.

        Raises:
            TypeError, ValueError: the name does not fit; the posterior is as it was.
        """
        names = check_new_name(name, self._class_names)
        mean = torch.cat([self.mean, self.mean.mean(0, keepdim=True)])
        check_overflow("mean", mean)
        self.mean = mean
        self.class_names = names
        return self

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.num_features}, {self.num_classes}, bias={self.has_bias}, {self.mean.dtype}"

    def forward(
        self,
        features: Tensor,  # [..., D]
    ) -> Tensor:  # [..., C]
        """Mean of the logits, as the layer itself would give them: the posterior may stand in its place in a model.

        Gradients reach the features, and stop at the posterior, which has no parameters. Values are not looked at: NaN
        in gives NaN out, unlike in ``predict_logits``.

        Raises:
            TypeError: no dense tensor, or of another dtype than ``mean`` outside ``torch.autocast``.
            ValueError: it has not D columns, or is on another device.
        """
        features = check_dense("features", features)
        if features.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"features must have shape (..., {self.num_features}) to match mean {shape_text(self.mean.shape)}, got "
                f"{shape_text(features.shape)}"
            )
        if features.device != self.mean.device:
            raise ValueError(f"features must be on {self.mean.device} like mean, got {features.device}")
        if features.dtype != self.mean.dtype and not torch.is_autocast_enabled(features.device.type):
            raise TypeError(f"features must be {self.mean.dtype} like mean, got {features.dtype}")
        weights, offsets = self.fold(self.mean)
        return nn.functional.linear(features, weights, offsets)

    @torch.no_grad()
    def predict_logits(
        self,
        features: Array,  # [N, D]
    ) -> Tensor:  # [N, C]
        """Mean of the logits alone, z = W phi; needs no covariance."""
        features = self.check_features(features)
        weights, offsets = self.fold(self.mean)
        logits = torch.addmm(offsets, features, weights.T)
        check_overflow("features", logits)
        return logits

    @torch.no_grad()
    def to_linear(self, out: nn.Linear | None = None) -> nn.Linear:
        """Return the mean as a plain layer on outer features, or write it into a layer that is there.

        Args:
            out: a model's own layer, whose weight and bias are overwritten, all or nothing; it may be on another
                device. By default a new layer, which has a bias where this posterior has one.

        Returns:
            ``out``, or the new layer.

        Raises:
            TypeError: ``out`` is no nn.Linear, computes its weight from something else, or has another dtype.
            ValueError: it has another shape, or a bias where this posterior has none, or the reverse; or the mean is
                not finite.
        """
        weights, offsets = self.fold(self.mean)
        check_overflow("mean", weights, offsets)
        if out is None:
            out = nn.utils.skip_init(  # a plain nn.Linear draws its weights from the global generator
                nn.Linear,
                self.num_features,
                self.num_classes,
                self.has_bias,
                device=weights.device,
                dtype=weights.dtype,
            )
        self._check_out(out)
        out.weight.copy_(weights)
        if self.has_bias:
            out.bias.copy_(offsets)
        return out

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
        out: Tensor | None = None,  # [N, D] or [N, D + 1]
    ) -> Tensor:  # [N, D] or [N, D + 1]
        """Outer features as the mathematics sees them, in the dtype of ``mean``; always a copy, in ``out`` if given."""
        inner = out
        if inner is None:
            inner = features.new_empty(features.shape[0], self.mean.shape[1], dtype=self.mean.dtype)
        outer = inner[:, : self.num_features]
        if features.dtype == inner.dtype:
            torch.sub(features.detach(), self.centre, out=outer)
        else:  # a difference of two dtypes would first copy the features to another tensor
            outer.copy_(features.detach()).sub_(self.centre)
        outer.mul_(self.scale)
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

    def _check_out(self, out: object) -> None:
        """Raise a typed error unless the mean can be written into ``out``."""
        if not isinstance(out, nn.Linear):
            raise TypeError(f"out must be a torch.nn.Linear, got {type(out).__name__}")
        if (out.bias is not None) != self.has_bias:
            has, lacks = ("a", "none") if self.has_bias else ("no", "one")
            raise ValueError(f"out must have {has} bias like the posterior, got a layer with {lacks}")
        shapes = {"weight": (self.num_classes, self.num_features), "bias": (self.num_classes,)}
        for name, shape in shapes.items() if self.has_bias else [("weight", shapes["weight"])]:
            value = getattr(out, name)
            if not isinstance(value, nn.Parameter):
                raise TypeError(
                    f"out.{name} must be a torch.nn.Parameter, got one that is computed: remove_parametrizations"
                )
            if isinstance(value, nn.UninitializedParameter):
                raise ValueError(f"out.{name} must have a shape, got a lazy one that no forward pass has given one yet")
            check_dense(f"out.{name}", value)
            if value.dtype != self.mean.dtype:
                raise TypeError(f"out.{name} must be {self.mean.dtype} like mean, got {value.dtype}")
            if value.shape != shape:
                raise ValueError(
                    f"out.{name} must have shape {shape_text(shape)} to match mean {shape_text(self.mean.shape)}, got "
                    f"{shape_text(value.shape)}"
                )
            if value.is_meta:
                raise ValueError(f"out.{name} must hold values, got a tensor on the meta device")
            if value.is_inference() and not torch.is_inference_mode_enabled():
                raise ValueError(f"out.{name} must take other values, got one made in torch.inference_mode()")
            if any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
                raise ValueError(f"out.{name} must have memory for each of its values, got an expanded one")

    def check_features(self, features: Array, *, name: str = "features", nonempty: bool = False) -> Tensor:  # [N, D]
        """Return ``features`` as a tensor or raise a typed error unless they fit this layer.

        That is: shape, dtype, device and finite values. An array is seen as a tensor, neither copied nor converted.
        """
        features = as_dense(name, features)
        mean, size = self.mean, self.num_features
        # A call for a few labels takes hardly longer than to say what would be wrong with them.
        if not (
            features.dtype == mean.dtype
            and features.dtype in COMPUTE_DTYPES
            and features.device == mean.device
            and features.dim() == 2
            and features.shape[1] == size
        ):
            expected = ShapeSpec("compute", ("N", str(size)))
            check_tensors({"mean": _MEAN, name: expected}, {"mean": mean, name: features})
        if nonempty and features.shape[0] == 0:
            raise ValueError(f"{name} must have at least one row, got {shape_text(features.shape)}")
        check_finite(name, features)
        return features

    def check_targets(self, targets: Array, count: int, *, name: str = "targets") -> Tensor:
        """Return ``targets`` as int64 [count] or raise a typed error."""
        labels = as_labels(name, targets, self.mean.device)
        if labels.dim() != 1 or labels.shape[0] != count:
            raise ValueError(f"{name} must have shape ({count},), one label per row, got {shape_text(labels.shape)}")
        check_labels(name, labels, self.num_classes)
        return labels
