"""What a trained head computes: its weight and bias, compared with what the layer gives for a few features."""

import copy
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lapal_ext.posterior.arguments import check_layer
from lapal_ext.validation.scalars import type_name
from lapal_ext.validation.tensors import HALF_DTYPES, check_dense, shape_text

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
HEADS = (nn.Linear, *CONVOLUTIONS)
HeadLayer = TypeVar("HeadLayer", nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ROWS = 8  # that are compared
_TOLERANCE = 1e-5  # relative to the sum of absolute products
_HALF_ROUNDING = 4.0  # eps of the layer's dtype
_FAST_TOLERANCE = 5e-3  # where float32 products are computed in TF32 or bfloat16


_ORDINARY = (Tensor, nn.Parameter)


class Head(NamedTuple):
    """A layer as a posterior takes it; a single logit has a row of zeros before it."""

    name: str  # of the argument
    layer: Any  # nn.Module: what is run: the layer itself, or a copy that may be changed
    weight: Tensor  # [C, D]
    bias: Tensor | None  # [C]
    outputs: int  # C, or 1

    def check_computes(self, features: Tensor) -> None:  # [N, D]
        """Raise a typed error unless the layer gives W features + b in evaluation mode, for a few of the features."""
        rows = features.detach()[:: max(1, len(features) // _ROWS)][:_ROWS].to(self.weight.dtype)
        positions = (None,) * (self.layer.weight.dim() - 2)
        own = self.layer.weight.dtype if self.layer.weight.dtype in HALF_DTYPES else rows.dtype
        rows = rows.to(own).to(rows.dtype)  # as the layer sees them
        seen = _run(self.name, self.layer, rows.to(own)[(..., *positions)])
        shape = (len(rows), self.outputs, *[1] * len(positions))
        if not isinstance(seen, Tensor) or seen.shape != shape:
            got = shape_text(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise TypeError(
                f"{self.name} must give a tensor of shape {shape_text(shape)} for {len(rows)} rows, got {got}"
            )
        seen = seen.reshape(len(rows), -1).double()
        weight = self.weight[-self.outputs :].detach()
        with torch.autocast(rows.device.type, enabled=False):
            expected, bound = (rows @ weight.T).double(), (rows.abs() @ weight.abs().T).double()
        if self.bias is not None:
            bias = self.bias[-self.outputs :].detach().double()
            expected, bound = expected + bias, bound + bias.abs()
        tolerance = max(_tolerance(self.weight), _HALF_ROUNDING * torch.finfo(own).eps)
        difference = (seen - expected).abs() - tolerance * bound
        difference[bound > 0.1 * torch.finfo(own).max] = 0.0  # sums that may overflow
        difference = difference.nan_to_num(torch.inf, torch.inf)
        if len(rows) and float(difference.max()) > 0:
            row, column = divmod(int(difference.argmax()), self.outputs)
            raise ValueError(
                f"{self.name} must compute W features + b, got a {type(self.layer).__name__} that gives "
                f"{seen[row, column]:.4g} where W features + b is {expected[row, column]:.4g}"
                f"{_reason(self.layer, seen, expected)}: put what it computes into a plain torch.nn.Linear"
            )


def read_head(head: object, *, name: str = "head") -> Head:
    """Read weight and bias of a layer as it runs in evaluation mode; the layer is not modified.

    Args:
        head: an nn.Linear, or a convolution of one position. Its weight may be computed (weight_norm, spectral_norm,
            pruning), or be of a subclass of tensors that can be dequantised.
        name: of the argument.

    Raises:
        TypeError, ValueError: no such layer, or its parts are invalid.
    """
    if not isinstance(head, HEADS):
        raise TypeError(f"{name} must be a torch.nn.Linear, got {type_name(head)}{merge_hint(head)}")
    check_kind(name, head)
    lazy = [key for key, value in (*head.named_parameters(), *head.named_buffers()) if nn.parameter.is_lazy(value)]
    if lazy:
        raise ValueError(f"{name}.{lazy[0]} must have a shape, got a lazy parameter before its first forward pass")
    layer = head if is_plain(head) else _copied(name, head)
    if layer is not head and not any(value.is_meta for value in layer.parameters()):
        first = next((value for value in layer.parameters() if value.dim() > 1), None)
        if first is not None and first.is_floating_point():  # hooks may compute the weight when the layer runs
            like = torch.zeros(1, *_input_shape(head), dtype=first.dtype, device=first.device)
            _run(name, layer, like)
    weight, bias = _values(f"{name}.weight", layer.weight), None
    if layer.bias is not None:
        bias = _values(f"{name}.bias", layer.bias)
    if not isinstance(head, nn.Linear):
        weight = weight.flatten(1)
    outputs = weight.shape[0] if weight.dim() else 0
    if outputs == 1 and weight.dim() == 2:
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = None if bias is None else torch.cat([torch.zeros_like(bias), bias])
    weight, bias = check_layer(weight, bias, prefix=f"{name}.", widen=True)
    return Head(name, layer, weight, bias, outputs)


def merge_hint(head: object) -> str:
    """What to do with an adapter around a layer, to follow its type in an error."""
    adapter = isinstance(head, nn.Module) and any(isinstance(part, nn.Linear) for part in head.modules())
    return ": merge an adapter into its layer first (peft: merge_and_unload()), and pass the layer" if adapter else ""


def check_kind(name: str, head: nn.Module) -> None:
    """Raise ValueError for a convolution of several positions."""
    if isinstance(head, CONVOLUTIONS):
        sizes = (*head.kernel_size, *head.stride, head.groups)
        padded = not isinstance(head.padding, str) and any(head.padding)
        if any(size != 1 for size in sizes) or padded:
            raise ValueError(
                f"{name} must be a convolution with kernel, stride and groups of 1 and no padding, got {head}: "
                "it would not be a linear layer of the features"
            )


def is_plain(head: nn.Module) -> bool:
    """Whether a layer is of one of torch's own classes, without hooks: it runs without a change to it."""
    hooks = (head._forward_hooks, head._forward_pre_hooks)
    return type(head) in HEADS and not any(hooks) and "forward" not in vars(head)


def check_writable_to(
    out: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
) -> None:
    """Raise a typed error if a layer does not compute W features + b with its own weight."""
    check_kind("out", out)
    if is_plain(out) or not isinstance(out.weight, nn.Parameter) or out.weight.is_meta:
        return
    head = read_head(out, name="out")
    columns = head.weight.shape[1]
    probe = torch.arange(_ROWS * columns, device=head.weight.device, dtype=torch.float64).sin().view(_ROWS, columns)
    head.check_computes(probe.to(head.weight.dtype))


def _input_shape(head: nn.Module) -> tuple[int, ...]:
    if isinstance(head, nn.Linear):
        return (head.in_features,)
    assert isinstance(head, CONVOLUTIONS)
    return (head.in_channels, *[1] * len(head.kernel_size))


def _copied(name: str, head: nn.Module) -> nn.Module:
    """A copy in evaluation mode: some layers are changed when they run, or when their mode does."""
    computed = [
        value
        for module in head.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    try:
        return copy.deepcopy(head, {id(value): value.detach().clone() for value in computed}).eval()
    except (TypeError, RuntimeError, AttributeError) as error:
        raise TypeError(f"{name} must be a layer that copy.deepcopy copies, got {type(head).__name__}") from error


def _run(name: str, layer: nn.Module, rows: Tensor) -> object:
    try:
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
            return layer(rows)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise TypeError(
            f"{name} must be a layer that runs on features alone, got {type(layer).__name__}, which raises "
            f"{type(error).__name__}: put its weight and bias into a plain torch.nn.Linear"
        ) from error


def _values(name: str, weight: Any) -> Tensor:
    """A weight as an ordinary tensor: those of quantised subclasses are dequantised, into a copy."""
    subclass: bool = is_traceable_wrapper_subclass(weight)
    if not subclass:
        return check_dense(name, weight)
    read = getattr(weight, "full_tensor", None) or getattr(weight, "dequantize", None)
    try:
        plain: Any = None if read is None else read()
    except (NotImplementedError, RuntimeError, TypeError):
        plain = None
    if not isinstance(plain, Tensor) or type(plain) not in _ORDINARY:
        raise TypeError(f"{name} must be a plain tensor or one with dequantize(), got {type(weight).__name__}")
    return plain


def _tolerance(weight: Tensor) -> float:
    fast = torch.get_float32_matmul_precision() != "highest" or (
        weight.is_cuda and torch.backends.cuda.matmul.allow_tf32
    )
    return _FAST_TOLERANCE if fast and weight.dtype == torch.float32 else _TOLERANCE


def _reason(layer: nn.Module, seen: Tensor, expected: Tensor) -> str:
    if layer._forward_hooks or layer._forward_pre_hooks:
        return ", since hooks of the layer change it"
    subclass: bool = is_traceable_wrapper_subclass(layer.weight)
    if subclass:
        return ", since it rounds its input too (leave the head out of quantisation)"
    factor = float((seen * expected).sum() / expected.square().sum().clamp_min(torch.finfo(torch.float64).tiny))
    if torch.allclose(seen, factor * expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        return f", {factor:.4g} times as much, as a temperature gives"
    if hasattr(layer, "merge") or any("lora" in key.lower() for key, _ in layer.named_parameters()):
        return ", since it has an adapter: merge it first"
    return ", since its forward is another function"
