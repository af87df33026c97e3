"""Writing the mean into a ``torch.nn.Linear`` or a convolution of one position, all or nothing."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lapal_ext.posterior.head import HEADS, check_writable_to, merge_hint
from lapal_ext.validation.scalars import type_name
from lapal_ext.validation.tensors import HALF_DTYPES, check_dense, check_overflow, shape_text


def write_linear(
    out: object,
    weight: Tensor,  # [C, D], of raw features
    bias: Tensor | None,  # [C]
    mean: Tensor,  # for errors, which name its dtype and shape
) -> Any:
    """Write weight and bias into ``out``, or into a new layer where it is None, and return it.

    Of two classes, a layer with a single logit takes the difference.

    Raises:
        TypeError, ValueError: ``out`` cannot hold them, or they are not finite; ``out`` is unchanged.
    """
    check_overflow("mean", weight, *([] if bias is None else [bias]))
    if out is None:
        classes, features = weight.shape
        # A plain nn.Linear would draw its weights from the global generator. Its parameters are trained later.
        with torch.inference_mode(False):
            out = nn.utils.skip_init(
                nn.Linear, features, classes, bias is not None, device=weight.device, dtype=weight.dtype
            )
    if not isinstance(out, HEADS):
        raise TypeError(f"out must be a torch.nn.Linear, got {type_name(out)}{merge_hint(out)}")
    if (out.bias is None) != (bias is None):
        has, lacks = ("no", "one") if bias is None else ("a", "none")
        raise ValueError(f"out must have {has} bias like the posterior, got a layer with {lacks}")
    outputs = out.out_features if isinstance(out, nn.Linear) else out.out_channels
    if outputs == 1 and len(weight) == 2:
        weight = weight[1:] - weight[:1]
        bias = None if bias is None else bias[1:] - bias[:1]
        check_overflow("mean", weight, *([] if bias is None else [bias]))
    if not isinstance(out, nn.Linear):
        weight = weight[(..., *[None] * len(out.kernel_size))]
    parts = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, part in parts.items():
        _check_part(f"out.{name}", getattr(out, name), part.shape, mean)
        if getattr(out, name).dtype != part.dtype:
            check_overflow("mean", part.to(getattr(out, name).dtype))
    check_writable_to(out)
    with torch.no_grad():
        for name, part in parts.items():
            getattr(out, name).copy_(part)
    return out


def _check_part(name: str, value: object, shape: torch.Size, mean: Tensor) -> None:
    """Raise a typed error unless a part of the mean can be written into this parameter."""
    if not isinstance(value, nn.Parameter):
        raise TypeError(f"{name} must be a torch.nn.Parameter, got one that is computed: remove_parametrizations")
    if isinstance(value, nn.UninitializedParameter):
        raise ValueError(f"{name} must have a shape, got a lazy parameter before its first forward pass")
    check_dense(name, value)
    subclass: bool = is_traceable_wrapper_subclass(value)
    if subclass:
        raise TypeError(
            f"{name} must be a plain tensor, got a parameter of {type(value.data).__name__}: leave the head out of "
            "quantisation, or put the torch.nn.Linear of to_linear() in its place"
        )
    if value.dtype != mean.dtype and not (value.dtype in HALF_DTYPES and mean.dtype == torch.float32):
        raise TypeError(f"{name} must be {mean.dtype} like mean, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(
            f"{name} must have shape {shape_text(shape)} to match mean {shape_text(mean.shape)}, got "
            f"{shape_text(value.shape)}"
        )
    if value.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device")
    if value.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(f"{name} must be writable, got one made in torch.inference_mode()")
    if any(step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)):
        raise ValueError(f"{name} must have memory for each of its values, got an expanded tensor")
