"""Finding the head of a model, which is the layer whose output the model returns, up to softmax or log-softmax."""

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lapal_ext.features.layers import check_calls, is_pointwise
from lapal_ext.features.outputs import Sample, named_tensors
from lapal_ext.validation.tensors import shape_text

_OTHERWISE = (
    "name the layer whose input the features are with layer=, or pass take='output' for what model itself returns, "
    "with pool= where that has a row for each token"
)
_ADAPTERS = ("lora", "adapter", "dora", "loha", "lokr", "oft", "ia3")  # in names of modules and of their classes


class Head(NamedTuple):
    """The name of a layer, and a warning if model returns a function of what the layer gives."""

    name: str
    caution: str | None = None
    pooled: bool = False  # whether the model returns less than the layer gives: ``check_pooled`` compares


class _Call(NamedTuple):
    module: nn.Module
    output: Callable[[], object]  # a weak reference: a strong one would keep every activation
    sample: Sample | None

    @property
    def width(self) -> int:
        """C, the outputs of a layer; 0 if it gives no vectors."""
        return 0 if self.sample is None else self.sample.values.shape[1]

    def gives(self, returned: Sequence[Tensor]) -> bool:
        """Whether what the module gave is one of the tensors that the model returns, up to softmax."""
        first = is_pointwise(self.module)
        return self.sample is not None and any(self.sample.returned_as(t, channels_first=first) for t in returned)


def find_head(model: nn.Module, forward: Callable[[], object], *, pooled: bool) -> Head:
    """Find the nn.Linear, or convolution of one position, whose output the model returns.

    Args:
        model: the model.
        forward: runs the model once and returns its result.
        pooled: whether the layer may run on every token and the model pick one; ``check_pooled`` then compares.

    Raises:
        ValueError: no such layer runs, it runs several times, or there are several heads.
    """
    names = {module: name for name, module in model.named_modules()}
    calls: list[_Call] = []

    def note(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        first, sample = is_pointwise(module), None
        vectors = sum(size != 1 for size in output.shape[1:]) <= 1
        if output.is_floating_point() and output.dim() > 1 and (first or _is_linear(module) or vectors):
            sample = Sample.of(output, channels_first=first)
        calls.append(_Call(module, weakref.ref(output), sample))

    handles = [module.register_forward_hook(note) for module in names]
    try:
        result = forward()
    finally:
        for handle in handles:
            handle.remove()
    returned = [tensor for _, tensor in named_tensors(result)]
    widths = {tensor.shape[-1] for tensor in returned if tensor.dim() == 2}
    linear = [call for call in calls if _is_linear(call.module) or (is_pointwise(call.module) and call.width in widths)]
    heads = {
        call.module: None
        for call in calls
        if (_is_linear(call.module) or is_pointwise(call.module)) and call.gives(returned)
    }
    beside = [call.module for call in linear if _side_by_side(call.module, linear[-1].module)]
    if not heads and len(linear) > 1 and linear[-2].module in beside:
        heads = dict.fromkeys([*beside, linear[-1].module])
    if len(heads) > 1:
        found = ", ".join(repr(names[module]) for module in heads)
        raise ValueError(f"layer must be named, since model has several heads: pass one of layer={found}")
    if heads:
        head = next(iter(heads))
        check_calls(sum(call.module is head for call in calls), names[head])
        return Head(names[head])
    if not linear:
        raise ValueError(
            "layer must be named, since model runs no torch.nn.Linear: pass layer=, or take='output' for what the "
            f"model itself returns{_who(model, names, calls, returned)}"
        )
    last = linear[-1]
    name = names[last.module]
    check_calls(sum(call.module is last.module for call in linear), name)
    if pooled and last.sample is not None and len(last.sample.shape) > 2:
        return Head(name, pooled=True)
    if last.sample is not None and _may_be_meant(last, returned):
        return Head(
            name,
            f"model returns something else than what layer {name!r} gives, a rising function of it: features are the "
            f"input of {name!r}; if another layer is meant, {_OTHERWISE}",
        )
    given = _text([tensor for tensor in [last.output()] if isinstance(tensor, Tensor)], last.sample)
    raise ValueError(
        f"layer must be named, since the last linear layer that runs, {name!r}, gives {given}, which is not what "
        f"model returns ({_text(returned)}){_who(model, names, calls, returned, last.module)}: "
        f"{_advice(model, names, calls, last, returned)}"
    )


def check_pooled(
    name: str,
    pool: str | None,
    logits: Tensor,  # [n, C] of the pooled features, as the layer gives them
    result: object,
) -> None:
    """Raise ValueError unless the model returns what its head gives for pooled features."""
    sample = Sample.of(logits, channels_first=False)
    returned = [tensor for _, tensor in named_tensors(result)]
    if not any(sample.returned_as(tensor, channels_first=False) for tensor in returned):
        raise ValueError(
            f"pool must give what model returns ({_text(returned)}), but the output of layer {name!r} with "
            f"pool={pool!r} is not that: choose another pool, or pass attention_mask with the data as the model needs "
            "it; layer= takes the layer as it is"
        )


def _may_be_meant(call: _Call, returned: Sequence[Tensor]) -> bool:
    """Whether the model returns a rising function of logits: of a square layer, it would rather be a pooling layer."""
    sample, weight = call.sample, getattr(call.module, "weight", None)
    square = isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == weight.shape[1]
    return sample is not None and not square and any(sample.orders(t, channels_first=False) for t in returned)


def _source(model: nn.Module, calls: Sequence[_Call], returned: Sequence[Tensor]) -> nn.Module | None:
    """The innermost module that gives what the model returns, unless only the model itself does."""
    tensors = {id(tensor) for tensor in returned}
    for call in calls:
        output = call.output()
        if call.module is not model and (call.gives(returned) or (output is not None and id(output) in tensors)):
            return call.module
    return None


def _who(
    model: nn.Module,
    names: dict[nn.Module, str],
    calls: Sequence[_Call],
    returned: Sequence[Tensor],
    last: nn.Module | None = None,
) -> str:
    source = _source(model, calls, returned)
    if source is None:
        return "; no layer gives that" if last is not None else ""
    choice = f": pass layer={names[source]!r} for its input" if last is None else ""
    return f"; {names[source]!r}, a {type(source).__name__}, gives that{choice}"


def _advice(
    model: nn.Module, names: dict[nn.Module, str], calls: Sequence[_Call], last: _Call, returned: Sequence[Tensor]
) -> str:
    source = _source(model, calls, returned)
    tokens = last.sample is not None and len(last.sample.shape) > 2
    if tokens and any(tensor.dim() == 2 and tensor.shape[-1] == last.width for tensor in returned):
        picks, pools = "picks one token", "pool='last', 'first' or 'mean', which is"
        if is_pointwise(last.module):
            picks, pools = "takes the mean over positions", "pool='mean', which is"
        return f"if model {picks}, pass {pools} compared with what it returns; otherwise {_OTHERWISE}"
    if source is None:
        return _OTHERWISE
    choice = f"pass layer={names[source]!r} for its input; otherwise {_OTHERWISE}"
    inside = any(part is last.module for part in source.modules())
    if inside and _is_adapter(model, source):
        return (
            "it is an adapter around a layer: merge it into that layer first (peft: merge_and_unload(), or merge()), "
            f"or {choice}"
        )
    return choice


def _is_adapter(model: nn.Module, module: nn.Module) -> bool:
    """Whether a module has a name of an adapter or a method that merges it, or adds two factors to a linear layer."""
    words = [type(module).__name__, *(name for name, _ in module.named_modules())]
    words += [name for name, _ in module.named_parameters()]
    if any(word in text.lower() for text in words for word in _ADAPTERS) or hasattr(module, "merge"):
        return True
    if hasattr(model, "merge_and_unload"):
        return True
    shapes = [(part.in_features, part.out_features) for part in module.modules() if isinstance(part, nn.Linear)]
    return any(
        (first[0], second[1]) == base and first[1] == second[0] < min(base)
        for base in shapes
        for first in shapes
        for second in shapes
    )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _side_by_side(one: nn.Module, other: nn.Module) -> bool:
    """Whether two layers that run in succession cannot be a chain, and so are two heads on the same features."""
    if not (isinstance(one, nn.Linear) and isinstance(other, nn.Linear)):
        return False
    same = (one.in_features, one.out_features) == (other.in_features, other.out_features)
    return one is not other and same and one.in_features != one.out_features


def _text(tensors: Sequence[Tensor], sample: Sample | None = None) -> str:
    if sample is not None:
        return f"a tensor of shape {shape_text(sample.shape)}"
    shapes = [f"a tensor of shape {shape_text(tensor.shape)}" for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return ", ".join(shapes) or "no tensor"
