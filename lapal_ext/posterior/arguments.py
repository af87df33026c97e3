"""Checks of the arguments of a posterior: layers, features, labels and prior precisions."""

import reprlib
from collections.abc import Sized
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lapal_ext.errors import NotFittedError
from lapal_ext.posterior.class_names import check_class_names, class_numbers
from lapal_ext.posterior.standardization import COLUMNS, Standardize
from lapal_ext.validation.arrays import Array, Labels
from lapal_ext.validation.scalars import check_integer, check_number
from lapal_ext.validation.tensors import (
    COMPUTE_DTYPES,
    HALF_DTYPES,
    ShapeSpec,
    as_dense,
    as_labels,
    check_dense,
    check_finite,
    check_labels,
    check_tensors,
    shape_text,
    way_out,
)

_WEIGHT, _BIAS = ShapeSpec.parse("[C, D]"), ShapeSpec.parse("[C]")
MEAN = ShapeSpec.parse("[C, columns]")  # D columns, or D + 1 with a bias


class Layer(Protocol):
    """The part of a posterior that arguments are checked against."""

    @property
    def mean(self) -> Tensor:
        """[C, D] or [C, D + 1]."""

    @property
    def num_features(self) -> int:
        """D."""

    @property
    def num_classes(self) -> int:
        """C."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """C names, or None."""


def check_layer(
    weight: object, bias: object, *, prefix: str = "", widen: bool = False
) -> tuple[Tensor, Tensor | None]:  # [C, D], [C]
    """Return weight and bias of a linear layer or raise a typed error; ``prefix`` precedes their names in messages.

    With ``widen`` they may have half precision, and are returned in float32.
    """
    weight_name, bias_name = f"{prefix}weight", f"{prefix}bias"
    weight, bias = as_dense(weight_name, weight), None if bias is None else as_dense(bias_name, bias)
    if widen and weight.dtype in HALF_DTYPES and bias is not None and bias.dtype == weight.dtype:
        bias = bias.float()
    weight = widened(weight) if widen else weight
    sizes = check_tensors({weight_name: _WEIGHT}, {weight_name: weight})
    if sizes["C"] < 2 or sizes["D"] < 1:
        raise ValueError(f"{weight_name} must have at least 2 classes and 1 feature, got {shape_text(weight.shape)}")
    check_finite(weight_name, weight)
    if bias is None:
        return weight, None
    check_tensors({weight_name: _WEIGHT, bias_name: _BIAS}, {weight_name: weight, bias_name: bias})
    check_finite(bias_name, bias)
    return weight, bias


def check_features(
    posterior: Layer,
    features: Array,
    *,
    name: str = "features",
    nonempty: bool = False,
) -> Tensor:  # [N, D]
    """Return ``features`` as a tensor or raise a typed error unless they fit the layer.

    Shape, dtype and device are checked, and that values are finite. An array is viewed as a tensor, neither copied nor
    converted. Features of half precision fit a layer in float32: each value is one of float32 too.
    """
    features = as_dense(name, features)
    mean, size = posterior.mean, posterior.num_features
    # The full check takes nearly as long as an update with a few labels, so it only runs to raise its error.
    if not (
        (
            (features.dtype == mean.dtype and features.dtype in COMPUTE_DTYPES)
            or (mean.dtype == torch.float32 and features.dtype in HALF_DTYPES)
        )
        and features.device == mean.device
        and features.dim() == 2
        and features.shape[1] == size
    ):
        half = mean.dtype == torch.float32 and features.dtype in HALF_DTYPES
        expected = ShapeSpec("storage" if half else "compute", ("N", str(size)))
        check_tensors({"mean": MEAN, name: expected}, {"mean": mean, name: features})
    if nonempty and features.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, got {shape_text(features.shape)}")
    check_finite(name, features)
    return features


def check_targets(
    posterior: Layer,
    targets: Labels,
    count: int,
    *,
    name: str = "targets",
) -> Tensor:  # [count] int64
    """Return ``targets``, numbers or names of classes, as ``count`` labels or raise a typed error."""
    numbers = class_numbers(name, targets, posterior.class_names)
    return _as_targets(name, numbers, count, posterior.num_classes, posterior.mean.device)


def _as_targets(name: str, targets: object, count: int, num_classes: int, device: torch.device) -> Tensor:
    labels = as_labels(name, targets, device)
    if labels.dim() != 1 or labels.shape[0] != count:
        raise ValueError(f"{name} must have shape ({count},), one label per row, got {shape_text(labels.shape)}")
    check_labels(name, labels, num_classes)
    return labels


def widened(tensor: Tensor) -> Tensor:
    """The tensor, in float32 if it has half precision."""
    return tensor.float() if tensor.dtype in HALF_DTYPES else tensor


class LabelledFeatures(NamedTuple):
    """The training data of a layer, checked."""

    features: Tensor  # [N, D] raw
    labels: Tensor  # [N] int64
    num_classes: int
    weights: Tensor | None = None  # trust in every row, [N]; None is one

    def only(self, rows: Tensor) -> "LabelledFeatures":
        """The rows where a bool [N] is True."""
        weights = None if self.weights is None else self.weights[rows]
        return self._replace(features=self.features[rows], labels=self.labels[rows], weights=weights)


def check_classes(num_classes: object, class_names: object) -> tuple[Any, tuple[str, ...] | None]:
    """Return the number of classes, by default that of the names, and the names; ``check_labelled`` checks the number.

    Raises:
        TypeError: neither is given, or names are not strings.
        ValueError: names are not distinct, or not as many as classes.
    """
    if num_classes is None and isinstance(class_names, Sized) and not isinstance(class_names, str):
        num_classes = len(class_names)
    if num_classes is None:
        raise TypeError(
            "num_classes must be the number of classes, since labels need not have all of them: pass num_classes=10, "
            "for example, or a list of class_names"
        )
    if class_names is None:
        return num_classes, None
    return num_classes, check_class_names(class_names, check_integer("num_classes", num_classes, at_least=2))


def check_labelled(
    features: Array,
    targets: Labels,
    num_classes: int,
    class_names: tuple[str, ...] | None = None,
    weights: Array | None = None,
) -> LabelledFeatures:
    """Return the training data of a layer, or raise a typed error."""
    num_classes = check_integer("num_classes", num_classes, at_least=2)
    features = check_first_features(features)
    numbers = class_numbers("targets", targets, class_names)
    labels = _as_targets("targets", numbers, features.shape[0], num_classes, features.device)
    trust = None if weights is None else check_trust("weights", weights, features)
    if trust is not None and float(trust.max()) == 0.0:
        raise ValueError("weights must be above 0 for at least one row")
    return LabelledFeatures(features, labels, num_classes, trust)


def check_trust(
    name: str,
    value: object,
    features: Tensor,  # [N, D]
) -> Tensor:  # [N]
    """Return one number >= 0 per row of ``features`` or raise a typed error.

    Numbers of any floating-point or integer dtype are taken; the result has the dtype of the features, or float32 if
    that is half precision.
    """
    values = as_dense(name, value).detach()
    count = features.shape[0]
    if values.dtype == torch.bool or values.dtype.is_complex:
        raise TypeError(f"{name} must be real numbers, got {values.dtype}")
    if values.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one number per row, got {shape_text(values.shape)}")
    if values.device != features.device:
        raise ValueError(f"{name} must be on {features.device} like features, got {values.device}")
    trust = values.to(torch.promote_types(features.dtype, torch.float32))
    check_finite(name, trust)
    if count and float(trust.min()) < 0.0:
        row = int(trust.argmin())
        raise ValueError(f"{name} must be at least 0, got {float(trust[row]):g} in row {row}")
    return trust


class Run(NamedTuple):
    """Neighbouring rows with the same trust."""

    rows: slice
    gamma: float


def check_gamma(
    value: object,
    features: Tensor,  # [N, D]
) -> list[Run]:
    """Return ``gamma``, a number or one per row, as runs of equal numbers, or raise a typed error."""
    count = features.shape[0]
    if not isinstance(value, (Tensor, np.ndarray)) or value.ndim == 0:
        if not isinstance(value, (int, float)) and (hint := way_out(value)):  # a list or a column, with one per row
            raise TypeError(f"gamma must be a number, got {type(value).__name__}{hint}")
        return [Run(slice(0, count), check_number("gamma", value, at_least=0.0))]
    values, counts = check_trust("gamma", value, features).unique_consecutive(return_counts=True)
    stops = counts.cumsum(0).tolist()
    starts = [0, *stops][:-1]
    runs = [Run(slice(*ends), gamma) for *ends, gamma in zip(starts, stops, values.tolist(), strict=True)]
    return runs or [Run(slice(0, 0), 0.0)]


def trust_of(
    runs: list[Run],
    like: Tensor,  # [N, D]
) -> Tensor:  # [N]
    """The trust of every row, in the dtype of ``like``, or ValueError if the dtype cannot hold it."""
    trust = like.new_empty(like.shape[0])
    for rows, gamma in runs:
        if gamma > torch.finfo(like.dtype).max:
            raise ValueError(f"gamma must be finite in {like.dtype}, got {gamma:g}")
        trust[rows] = gamma
    return trust


def check_tolerance(value: object) -> float:
    """Return a change of probabilities, or raise a typed error."""
    return check_number("tolerance", value, at_least=0.0)


def check_first_features(features: Array) -> Tensor:  # [N, D]
    """Return features of any width, before there is a layer, or raise a typed error; half precision is widened."""
    features = as_dense("features", features).detach()
    check_tensors({"features": ShapeSpec.parse("storage [N, D]")}, {"features": features})
    if features.numel() == 0:
        raise ValueError(f"features must have at least one row and one column, got {shape_text(features.shape)}")
    check_finite("features", features)
    return widened(features)


def check_module_input(
    posterior: Layer,
    features: object,
) -> Tensor:  # [..., D]
    """Return ``features`` or raise a typed error unless a linear layer in place of the posterior accepts them.

    Only type, device, dtype and number of columns are checked: a check of values would synchronise a GPU.
    """
    features, mean, size = check_dense("features", features), posterior.mean, posterior.num_features
    if features.shape[-1:] != (size,):
        raise ValueError(
            f"features must have shape (..., {size}) to match mean {shape_text(mean.shape)}, got "
            f"{shape_text(features.shape)}"
        )
    if features.device != mean.device:
        raise ValueError(f"features must be on {mean.device} like mean, got {features.device}")
    # Autocast converts any two dtypes but float64.
    mixed = torch.float64 not in (features.dtype, mean.dtype) and features.dtype.is_floating_point
    if features.dtype != mean.dtype and not (mixed and torch.is_autocast_enabled(features.device.type)):
        raise TypeError(f"features must be {mean.dtype} like mean, got {features.dtype}")
    return features


def check_standardize(value: object) -> Standardize:
    """Return ``value`` or raise a typed error unless it is True, False or ``columns``."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, str) and value == COLUMNS:
        return COLUMNS
    error = ValueError if isinstance(value, str) else TypeError
    got = reprlib.repr(value) if isinstance(value, str) else type(value).__name__
    raise error(f"standardize must be True, False or 'columns', got {got}")


def check_prior_precision(value: object, dtype: torch.dtype) -> float:
    """Return a prior precision as a float or raise a typed error unless it has an inverse in ``dtype``."""
    number = check_number("prior_precision", value, above=0.0)
    smallest = torch.finfo(dtype).tiny
    if not smallest <= number <= 1.0 / smallest:
        raise ValueError(
            f"prior_precision must lie in [{smallest:.2g}, {1.0 / smallest:.2g}], where it has an inverse in {dtype}, "
            f"got {number:g}"
        )
    return number


def check_prior_precisions(
    name: str,
    value: object,
    dtype: torch.dtype,
) -> Tensor:  # of its shape, float64
    """Return prior precisions in float64 or raise a typed error unless all of them have an inverse in ``dtype``."""
    values = as_dense(name, value)
    if not values.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point numbers, got {values.dtype}")
    check_finite(name, values)
    smallest = torch.finfo(dtype).tiny
    values64 = values.detach().double()
    if not bool(((values64 >= smallest) & (values64 <= 1.0 / smallest)).all()):
        raise ValueError(f"{name} must lie in [{smallest:.2g}, {1.0 / smallest:.2g}], got {values64.tolist()}")
    return values64


def require_fitted(fitted: bool) -> None:
    """Raise NotFittedError before ``fit``."""
    if not fitted:
        raise NotFittedError("posterior must be fitted: call fit(features), with features[:0] for the prior alone")
