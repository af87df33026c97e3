"""Calls a function with one wrong argument: it must raise the right error, and change nothing."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, NotPSDError, SequentialSelector
from tests.fuzz.values import Bad, Table


class Call(NamedTuple):
    """A function, arguments that it accepts, and for each argument the values that it must refuse."""

    function: Callable[..., object]
    arguments: Mapping[str, Any]
    bad: Mapping[str, Table]


def cases(calls: Mapping[str, Call]) -> list[Any]:
    """One parameter set (call, argument, bad value) for every entry of every table."""

    def all_cases() -> Iterator[Any]:
        for name, call in calls.items():
            for argument, table in call.bad.items():
                assert argument in call.arguments, f"{name} has no baseline for {argument}"
                for words, bad in table.items():
                    yield pytest.param(call, argument, bad, id=f"{name}-{argument}-{words}")

    return list(all_cases())


def fresh(call: Call) -> dict[str, Any]:
    """The accepted arguments, with copies of posteriors, since some functions change them."""
    return {
        name: value.clone() if isinstance(value, LastLayerLaplace) else value for name, value in call.arguments.items()
    }


def bits(value: object) -> object:
    """Everything in a tensor, an array, a posterior or a selector, to the bit; None for any other value."""
    if isinstance(value, LastLayerLaplace):
        tensors = (*value.buffers(), precision_of(value))
        return [bits(tensor) for tensor in tensors], value.get_extra_state(), value.training
    if isinstance(value, nn.UninitializedParameter):
        return None
    if isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_nested):
        return value.shape, value.dtype, _bytes_of(value)
    if isinstance(value, nn.Module):
        state = [(name, bits(part)) for name, part in (*value.named_parameters(), *value.named_buffers())]
        return state, [(module.training, len(module._forward_hooks)) for module in value.modules()]
    if isinstance(value, BaseEstimator):
        return {name: bits(part) or part for name, part in vars(value).items()}
    if isinstance(value, SequentialSelector):
        return _of_selector(value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes(), value.flags.writeable
    return None


def precision_of(model: LastLayerLaplace) -> Tensor | None:
    """None where the covariance was damaged, and has no inverse."""
    try:
        return model.precision
    except NotPSDError:
        return None


def _of_selector(selector: SequentialSelector) -> object:
    """Its answers, its open questions, and all rows that it would ask for from here on."""
    state = selector.state_dict()
    copied = copy.deepcopy(selector)
    left = len(copied._pool) - len(copied._progress.record.closed.union(copied._progress.reserved))
    try:
        questions = bits(copied.ask(left)) if left else None
    except (ValueError, ArithmeticError) as error:  # the posterior is damaged
        questions = str(error)
    return (
        [bits(state[name]) for name in sorted(state)],
        bits(selector._initial),
        bits(selector._progress.asked),
        questions,
    )


def _bytes_of(value: Tensor) -> list[int]:
    return value.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8).tolist()


def check_error(call: Call, argument: str, bad: Bad) -> None:
    arguments = {**fresh(call), argument: bad.value}
    before = {name: bits(value) for name, value in arguments.items()}
    with pytest.raises(bad.error) as caught:
        call.function(**arguments)
    text = caught.value.args[0]
    assert type(caught.value) is bad.error, f"{type(caught.value).__name__}: {text}"
    assert re.match(f"{argument}.{{0,3}}{bad.says}", text), text
    assert {name: bits(value) for name, value in arguments.items()} == before
