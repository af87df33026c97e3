"""Finding the head of a model, which is the layer whose output the model returns, up to softmax or log-softmax."""

import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lapal_ext.features.layers import channels_first, check_calls, is_pointwise, takes_hooks
from lapal_ext.features.outputs import Sample, named_tensors, results
from lapal_ext.features.pooling import Pooling
from lapal_ext.validation.tensors import shape_text

_ADAPTERS = ("lora", "adapter", "dora", "loha", "lokr", "oft", "ia3")  # in names of modules and of their classes
_NOT_HEADS = (  # in names of classes: their input is not what a linear layer sees
    *("norm", "pool", "dropout", "identity", "flatten"),
    *("relu", "gelu", "silu", "tanh", "sigmoid", "softmax"),
)
_MOST_SHAPES = 3  # in a message: language models return the keys and values of each layer


class Head(NamedTuple):
    """The name of a layer, and a warning if model returns a function of what the layer gives."""

    name: str
    caution: str | None = None
    pooled: bool = False  # whether the model returns rows of what the layer gives for tokens, as ``pool`` makes them


class _Call(NamedTuple):
    module: nn.Module
    output: Callable[[], object]  # a weak reference: a strong one would keep every activation
    sample: Sample | None
    pooled: Sample | None

    @property
    def width(self) -> int:
        """C, the outputs of a layer; 0 if it gives no vectors."""
        return 0 if self.sample is None else self.sample.values.shape[1]

    def gives(self, returned: Sequence[Tensor]) -> bool:
        """Whether what the module gave, or its pooled rows, are a tensor that the model returns, up to softmax."""
        first = is_pointwise(self.module)
        whole = self.sample is not None and any(self.sample.returned_as(t, channels_first=first) for t in returned)
        return whole or self.gives_pooled(returned)

    def gives_pooled(self, returned: Sequence[Tensor]) -> bool:
        """Whether the pooled rows of what the module gave are a tensor that the model returns, up to softmax."""
        return self.pooled is not None and any(self.pooled.returned_as(t, channels_first=False) for t in returned)


def find_head(model: nn.Module, forward: Callable[[], object], pool: Pooling | None) -> Head:
    """Find the nn.Linear, or convolution of one position, whose output the model returns.

    Args:
        model: the model.
        forward: runs the model once and returns its result.
        pool: how the model may make a row of what the layer gives for each token, or None.

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
        rows = None
        if pool is not None and output.is_floating_point():
            rows = pool.of(output, channels_first=channels_first(module))
        pooled = None if rows is None else Sample.of(rows, channels_first=False)
        calls.append(_Call(module, weakref.ref(output), sample, pooled))

    handles = [module.register_forward_hook(note) for module in names if takes_hooks(module)]
    try:
        result = forward()
    finally:
        for handle in handles:
            handle.remove()
    returned = results(result)
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
        own = [call for call in calls if call.module is head]
        check_calls(len(own), names[head])
        return Head(names[head], pooled=own[0].gives_pooled(returned))
    takes = _takes(result)
    if not linear:
        raise ValueError(
            f"layer must be named, since model runs no torch.nn.Linear: pass layer=, or {takes} for what the model "
            f"itself returns{_who(model, names, calls, returned)}"
        )
    last = linear[-1]
    name = names[last.module]
    source = _source(model, calls, returned)
    adapter = source is not None and _is_adapter(model, source, last.module)
    if source is None:
        check_calls(sum(call.module is last.module for call in linear), name)
    tokens = last.sample is not None and len(last.sample.shape) > 2 and last.width in widths
    if pool is not None and tokens and (source is None or not _may_be_head(source)):
        if last.pooled is None:  # pooling says why
            return Head(name, pooled=True)
        raise ValueError(_mismatch(last.module, name, pool.kind, returned))
    if not adapter and last.sample is not None and _may_be_meant(last, calls, returned):
        return Head(
            name,
            f"model returns something else than what layer {name!r} gives, a rising function of it: features are the "
            f"input of {name!r}; if another layer is meant, {_otherwise(takes)}",
        )
    given = _text([tensor for tensor in [last.output()] if isinstance(tensor, Tensor)], last.sample)
    raise ValueError(
        f"layer must be named, since the last linear layer that runs, {name!r}, gives {given}, which is not what "
        f"model returns ({_returned(returned, last.sample)}){_who(model, names, calls, returned, last.module)}: "
        f"{_advice(names, last, source, returned, takes, adapter=adapter)}"
    )


def check_pooled(
    layer: nn.Module,
    name: str,
    pool: str,
    logits: Tensor,  # [n, C] of the pooled features, as the layer gives them
    result: object,
    first: int,
) -> None:
    """Raise ValueError unless the model returns what its head gives for the pooled features of a batch.

    Args:
        layer: the head.
        name: its name.
        pool: how features are pooled.
        logits: what the head gives.
        result: what the model returns.
        first: the first row of the batch.
    """
    sample = Sample.of(logits, channels_first=False, rows=len(logits))
    returned = results(result)
    if not any(sample.returned_as(tensor, channels_first=False) for tensor in returned):
        raise ValueError(_mismatch(layer, name, pool, returned, f" in the batch of data from row {first} on"))


def _mismatch(layer: nn.Module, name: str, pool: str, returned: Sequence[Tensor], where: str = "") -> str:
    choice = "choose another pool, or pass attention_mask with the data as the model needs it"
    if is_pointwise(layer):
        choice = "if model computes a function between the two, no linear layer of pooled features gives its logits"
    return (
        f"pool must give what model returns ({_text(returned)}), but the output of layer {name!r} with pool={pool!r} "
        f"is not that{where}: {choice}; layer={name!r} takes the layer as it is"
    )


def _takes(result: object) -> str:
    """``take=`` for what the model returns: for fields of it where it is not a tensor."""
    named = [name for name, tensor in named_tensors(result) if name and tensor.is_floating_point() and tensor.dim() > 1]
    named = [name for name in named if "." not in name] or named  # not the keys and values of each layer
    return " or ".join(f"take='output.{name}'" for name in named[:2]) or "take='output'"


def _otherwise(takes: str) -> str:
    return (
        f"name the layer whose input the features are with layer=, or pass {takes} for what model itself returns, "
        "with pool= where that has a row for each token"
    )


def _may_be_meant(call: _Call, calls: Sequence[_Call], returned: Sequence[Tensor]) -> bool:
    """Whether the model returns a rising function of logits.

    A square layer would rather be a pooling layer, and one before a layer with weights is a layer of an encoder.
    """
    sample, weight = call.sample, getattr(call.module, "weight", None)
    square = isinstance(weight, Tensor) and weight.dim() == 2 and weight.shape[0] == weight.shape[1]
    if sample is None or square or not any(sample.orders(t, channels_first=False) for t in returned):
        return False
    place = next(number for number, other in enumerate(calls) if other is call)
    later = [other.module for other in calls[place + 1 :]]
    return not any(
        value.numel() > 1 and all(part is not call.module for part in module.modules())
        for module in later
        for value in module.parameters(recurse=False)
    )


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
    choice = f": pass layer={names[source]!r} for its input" if last is None and _may_be_head(source) else ""
    return f"; {names[source]!r}, a {type(source).__name__}, gives that{choice}"


def _advice(
    names: dict[nn.Module, str],
    last: _Call,
    source: nn.Module | None,
    returned: Sequence[Tensor],
    takes: str,
    *,
    adapter: bool,
) -> str:
    otherwise = _otherwise(takes)
    tokens = last.sample is not None and len(last.sample.shape) > 2
    if source is not None and adapter:
        return (
            "it is an adapter around a layer: merge it into that layer first (peft: merge_and_unload(), or merge()), "
            f"or pass layer={names[source]!r} for its input; otherwise {otherwise}"
        )
    if tokens and any(tensor.dim() == 2 and tensor.shape[-1] == last.width for tensor in returned):
        picks, pools = "picks one token", "pool='last', 'first' or 'mean', which is"
        if is_pointwise(last.module):
            picks, pools = "takes the mean over positions", "pool='mean', which is"
        pooling = f"if model {picks}, pass {pools} compared with what it returns; otherwise"
        if source is None or _may_be_head(source):
            return f"{pooling} {otherwise}"
        encoder = f"if model is an encoder without a head, pass {takes} for what it returns"
        return f"{encoder}; {pooling} name the layer whose input the features are with layer="
    if source is None or not _may_be_head(source):
        return otherwise
    return f"pass layer={names[source]!r} for its input; otherwise {otherwise}"


def _may_be_head(module: nn.Module) -> bool:
    """Whether a module computes more than a normalisation, a pooling or an activation, by its name."""
    return not any(word in type(module).__name__.lower() for word in _NOT_HEADS)


def _is_adapter(model: nn.Module, module: nn.Module, part: nn.Module) -> bool:
    """Whether a module is an adapter around a layer, and ``part`` is that layer or one of its factors.

    It has a method that merges it; or it contains ``part``, and has a name of an adapter or adds two factors to a
    linear layer.
    """
    if hasattr(module, "merge"):
        return True
    if module is part or all(inner is not part for inner in module.modules()):
        return False
    words = [type(module).__name__, *(name for name, _ in module.named_modules())]
    words += [name for name, _ in module.named_parameters()]
    if any(word in text.lower() for text in words for word in _ADAPTERS) or hasattr(model, "merge_and_unload"):
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


def _returned(tensors: Sequence[Tensor], sample: Sample | None) -> str:
    same = sample is not None and any(sample.shape == tuple(tensor.shape) for tensor in tensors)
    return f"{_text(tensors)}{', with other values' if same else ''}"


def _text(tensors: Sequence[Tensor], sample: Sample | None = None) -> str:
    if sample is not None:
        return f"a tensor of shape {shape_text(sample.shape)}"
    shapes = [f"a tensor of shape {shape_text(tensor.shape)}" for tensor in tensors if isinstance(tensor, torch.Tensor)]
    more = len(shapes) - _MOST_SHAPES
    return ", ".join(shapes[:_MOST_SHAPES]) + (f" and {more} more" if more > 0 else "") or "no tensor"
