"""Finding the layer that features come from, and reading its input or output in a forward pass."""

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lapal_ext.validation.tensors import shape_text

TAKES = ("input", "output")
"""The part of a layer that is read: its input, or its output."""

_MOST_NAMES = 8  # of layers, in a message


def layer_name(model: nn.Module, layer: str | nn.Module | None, take: str) -> str | None:
    """Name of a layer in ``model.named_modules()``, or None if ``find_head`` has to find it.

    Raises:
        TypeError: ``layer`` is neither a name nor a module.
        ValueError: it is not in the model; the message names those that are.
    """
    if layer is None:
        return None if take == "input" else ""  # the output of the model itself
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        if layer not in names:
            raise ValueError(f"layer must be part of model, got {type(layer).__name__}: {_choice(model)}")
        return names[layer]
    if not isinstance(layer, str):
        raise TypeError(f"layer must be a name, a torch.nn.Module or None, got {type(layer).__name__}")
    try:
        return names[model.get_submodule(layer)]
    except AttributeError:
        raise ValueError(f"layer must be part of model, got {layer!r}: {_choice(model)}") from None


def find_head(model: nn.Module, forward: Callable[[], object]) -> str:
    """Name of the last nn.Linear that runs in a forward pass.

    Args:
        model: the model.
        forward: runs the model once and returns its result.

    Raises:
        ValueError: no nn.Linear runs, the last one runs several times, or there are several heads.
    """
    names: dict[nn.Linear, str] = {
        module: name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    calls: list[tuple[nn.Linear, Callable[[], object]]] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, weakref.ref(output)))  # a strong reference would keep every activation

    handles = [module.register_forward_hook(note) for module in names]
    try:
        returned = list(_tensors(forward()))
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise ValueError(
            "layer must be named, since model runs no torch.nn.Linear: pass layer=, or take='output' for what the "
            "model itself returns"
        )
    last = calls[-1][0]
    heads = {module: None for module, output in calls if any(output() is tensor for tensor in returned)}
    heads |= {module: None for module, _ in calls[-2:-1] if _side_by_side(module, last)} | {last: None}
    if len(heads) > 1:
        found = ", ".join(repr(names[module]) for module in heads)
        raise ValueError(f"layer must be named, since model has several heads: pass one of layer={found}")
    _check_calls(sum(module is last for module, _ in calls), names[last])
    return names[last]


def catch(layer: nn.Module, name: str, take: str, rows: int, forward: Callable[[], object]) -> Tensor:  # [rows, D]
    """Return the input or output of a layer while ``forward`` runs; the hook is removed afterwards.

    Raises:
        ValueError: the layer does not run exactly once, or the value is not a matrix with one row for each input.
        TypeError: the value is not a tensor of floating point numbers.
    """
    caught: list[object] = []

    def keep(value: object) -> None:
        caught.append(value.detach().clone() if isinstance(value, Tensor) else value)  # before it is changed in place

    def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        keep(next(iter((*arguments, *keywords.values())), None))

    if take == "input":
        handle = layer.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = layer.register_forward_hook(lambda _module, _arguments, output: keep(output))
    try:
        forward()
    finally:
        handle.remove()
    _check_calls(len(caught), name)
    value, what = caught[0], f"the {take} of layer {name!r}"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{what} must be a tensor of floating point numbers, got {kind}: choose another layer")
    if value.dim() != 2 or len(value) != rows or value.shape[1] == 0:
        raise ValueError(
            f"{what} must have shape ({rows}, D), one row for each input, got {shape_text(value.shape)}: choose "
            "another layer, or put one that pools or flattens into the model"
        )
    return value


def _check_calls(count: int, name: str) -> None:
    if count != 1:
        ran = "did not run" if count == 0 else f"ran {count} times"
        raise ValueError(f"layer must run once in a forward pass, {name!r} {ran}: choose another layer")


def _side_by_side(one: nn.Linear, other: nn.Linear) -> bool:
    """Whether two layers that run in succession cannot be a chain, and so are two heads on the same features."""
    same = (one.in_features, one.out_features) == (other.in_features, other.out_features)
    return one is not other and same and one.in_features != one.out_features


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


def _choice(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        return "model has no torch.nn.Linear, see model.named_modules()"
    shown = ", ".join(map(repr, names[-_MOST_NAMES:]))
    return f"its linear layers are {'…, ' if len(names) > _MOST_NAMES else ''}{shown}"
