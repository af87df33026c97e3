"""The layer that features come from, by name, and reading its input or output in a forward pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lapal_ext.features.outputs import fields, named_tensors
from lapal_ext.validation.scalars import check_choice, type_name

TAKES = ("input", "output")
"""The part of a layer that is read: its input, or its output."""

_MOST_NAMES = 8  # of layers, in a message
_CHANNELS_FIRST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)


def layer_name(model: nn.Module, layer: str | nn.Module | None, take: str) -> str | None:
    """Name of a layer in ``model.named_modules()``, or None if ``find_head`` has to find it.

    Raises:
        TypeError: ``layer`` is neither a name nor a module, or the model takes no hooks.
        ValueError: it is not in the model; the message names those that are.
    """
    if layer is None:
        return None if take == "input" else ""  # the output of the model itself
    if not takes_hooks(model):
        raise _without_hooks(layer, model)
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        if layer not in names:
            raise ValueError(f"layer must be part of model, got {type(layer).__name__}: {_choice(model)}")
        return names[layer]
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a name, a torch.nn.Module or None, got {type_name(layer)}")
    try:
        return names[model.get_submodule(layer)]
    except AttributeError:
        raise ValueError(f"layer must be part of model, got {layer!r}: {_choice(model)}") from None


class Caught(NamedTuple):
    """The input or output of a layer in one forward pass, and what the model returned."""

    value: Tensor
    what: str  # its name in messages
    result: object


def catch(layer: nn.Module, name: str, take: str, forward: Callable[[], object]) -> Caught:
    """Return the input or output of a layer while ``forward`` runs; the hook is removed afterwards.

    Args:
        layer: the layer.
        name: its name, for messages.
        take: ``input``, ``output``, or ``output.`` and the name of a field of what the layer returns.
        forward: runs the model once and returns its result.

    Raises:
        ValueError: the layer does not run exactly once.
        TypeError: the value is not a tensor of floating point numbers, or the layer takes no hooks.
    """
    caught: list[object] = []
    part, _, path = take.partition(".")
    what = f"the {part} of layer {name!r}" if not path else f"{path!r} in the {part} of layer {name!r}"

    def keep(value: object) -> None:
        value = _field(value, path, what) if path else value
        caught.append(value.detach().clone() if isinstance(value, Tensor) else value)  # before it is changed in place

    def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        keep(next(iter((*arguments, *keywords.values())), None))

    if takes_hooks(layer):
        if part == "input":
            handle = layer.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = layer.register_forward_hook(lambda _module, _arguments, output: keep(output))
        try:
            result = forward()
        finally:
            handle.remove()
    elif name or part == "input":
        raise _without_hooks(name, layer)
    else:
        result = forward()
        keep(result)
    check_calls(len(caught), name)
    value = caught[0]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        hint = _fields_to_take(value) if part == "output" else ""
        raise TypeError(f"{what} must be a tensor of floating point numbers, got {kind}: {hint}choose another layer")
    return Caught(value, what, result)


def check_take(take: object) -> None:
    """Raise ValueError unless ``take`` is one of ``TAKES`` or names a field of the output."""
    if not (isinstance(take, str) and take.startswith("output.") and all(take.split("."))):
        check_choice("take", take, TAKES)


def takes_hooks(module: nn.Module) -> bool:
    """Whether a module runs hooks, which those of TorchScript do not."""
    return not isinstance(module, torch.jit.ScriptModule)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a convolution of one position, which is a linear layer on each."""
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and all(size == 1 for size in (*module.kernel_size, *module.stride, module.groups))
        and (isinstance(module.padding, str) or not any(module.padding))
    )


def channels_first(module: nn.Module) -> bool | None:
    """Whether the second dimension of a layer's input is D, rather than the last one; None if that is not known."""
    if isinstance(module, nn.Linear):
        return False
    return True if isinstance(module, _CHANNELS_FIRST) else None


def _without_hooks(layer: object, module: nn.Module) -> TypeError:
    return TypeError(
        f"layer must take hooks, got {layer!r} of a {type(module).__name__}: pass the model that was scripted or "
        "traced, or take='output' without layer="
    )


def _field(value: object, path: str, what: str) -> object:
    for name in path.split("."):
        parts = fields(value) or {}
        if name not in parts:
            raise ValueError(f"take must name a field, got none called {name!r} for {what}: {_fields_to_take(value)}")
        value = parts[name]
    return value


def _fields_to_take(value: object) -> str:
    named = [name for name, tensor in named_tensors(value) if name and tensor.is_floating_point()]
    names = [f"take='output.{name}'" for name in sorted(named, key=lambda name: name.count("."))]
    return f"pass {' or '.join(names[:_MOST_NAMES])} for a field of it, or " if names else ""


def check_calls(count: int, name: str) -> None:
    """Raise ValueError unless a layer ran once in a forward pass."""
    if count != 1:
        ran = "did not run" if count == 0 else f"ran {count} times"
        raise ValueError(f"layer must run once in a forward pass, {name!r} {ran}: choose another layer")


def _choice(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        return "model has no torch.nn.Linear, see model.named_modules()"
    shown = ", ".join(map(repr, names[-_MOST_NAMES:]))
    return f"its linear layers are {'…, ' if len(names) > _MOST_NAMES else ''}{shown}"
