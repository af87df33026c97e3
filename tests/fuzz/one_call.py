"""One call of a public function with some of its arguments changed, and the checks of what it does."""

import copy
import re
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, NotFittedError, NotPSDError, SelectionResult, StorageError
from lapal_ext.interop.sklearn import LaplaceClassifier
from lapal_ext.ops import use_references
from lapal_ext.posterior.state import ATTRIBUTES
from tests.fuzz.calls import bits, precision_of
from tests.fuzz.changes import REFUSED, SAME, Choose, evenly, the_same_every_time
from tests.fuzz.selector_functions import Restartable
from tests.fuzz.small import Function, small
from tests.fuzz.tally import count, count_wrong

CAMPAIGN = "bad input"
TYPED = (ValueError, TypeError, KeyError, OSError, NotFittedError, NotPSDError)
# What an error about a posterior may name instead of the argument.
OF_A_POSTERIOR = ("posterior", "mean", "centre", "scale", "covariance", "precision", "gamma", "utility")
OF_A_STATE = ATTRIBUTES  # what an error about a state may name instead
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7}  # relative to the largest entry; 15,000 calls had no outlier
_OF_HALF = {torch.float16: 2e-3, torch.bfloat16: 2e-2}  # the same, of a result in half precision
_OF_A_GAIN = 64.0  # eps: a gain of uncertainty herding, whose terms are at most one, may be rounding alone


def tensors(result: object) -> list[Tensor]:
    """All computed tensors of a result."""
    if isinstance(result, LastLayerLaplace):
        precision = precision_of(result)
        none = torch.full_like(result.covariance, torch.nan)
        return [result.mean, result.covariance, none if precision is None else precision]
    if isinstance(result, nn.Linear):
        return [parameter.detach() for parameter in result.parameters()]
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in tensors(part)]
    return [] if isinstance(result, str) else [torch.tensor(result, dtype=torch.float64)]


def fresh(value: object) -> object:
    """A copy, where a call may change the value."""
    if isinstance(value, LastLayerLaplace):
        return value.clone()
    if isinstance(value, Restartable):
        return value.again(fresh)
    if isinstance(value, LaplaceClassifier):
        return copy.deepcopy(value)
    return value.clone_state() if isinstance(value, torch.Generator) else value


def wide(value: object) -> object:
    """The same in float64, and in contiguous memory."""
    if isinstance(value, LastLayerLaplace):
        return value.clone().double()
    if isinstance(value, Restartable):
        return value.again(fresh if value.draws else wide)
    if isinstance(value, LaplaceClassifier):
        copied = copy.deepcopy(value)
        vars(copied).update({name: wide(part) for name, part in vars(value).items() if name == "posterior_"})
        return copied
    if isinstance(value, nn.Linear):
        has_bias = value.bias is not None
        layer = nn.utils.skip_init(nn.Linear, value.in_features, value.out_features, has_bias, dtype=torch.float64)
        layer.load_state_dict(value.state_dict())
        return layer
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(np.float64, order="C")
    return (
        value.detach().double().contiguous()
        if isinstance(value, Tensor) and value.is_floating_point()
        else fresh(value)
    )


def agree(result: object, expected: object, tolerance: float) -> bool:
    """Whether results are equal up to rounding; picks may differ from the first on at which two utilities tie."""
    if isinstance(result, SelectionResult) and isinstance(expected, SelectionResult):
        for place, (row, wanted) in enumerate(zip(result.indices, expected.indices, strict=True)):
            floor = _OF_A_GAIN * torch.finfo(result.utilities.dtype).eps
            if not _close(result.utilities[place], expected.utilities[place], tolerance, floor):
                return False
            if row != wanted:
                return True
        return agree(result.posterior, expected.posterior, tolerance)
    if isinstance(result, LastLayerLaplace) and result.class_names != expected.class_names:
        return False
    return all(
        _close(value, wanted, tolerance) for value, wanted in zip(tensors(result), tensors(expected), strict=True)
    )


def _close(value: Tensor, wanted: Tensor, tolerance: float, floor: float = 0.0) -> bool:
    if value.shape != wanted.shape:
        return False
    known = wanted.double()[wanted.isfinite()].abs()
    relative = max(tolerance, _OF_HALF.get(value.dtype, 0.0))
    allowed = max(relative * float(known.max()) if known.numel() else 0.0, floor)
    return torch.allclose(value.double(), wanted.double(), rtol=0.0, atol=allowed, equal_nan=True)


def one_call(choose: Choose, function: Function, name: str, campaign: str) -> None:
    """Change one or two arguments of an accepted call, and check its error or its result."""
    problem = small(choose)
    arguments = function.arguments(choose, problem)
    values = {argument: fresh(made.good) for argument, made in arguments.items()}
    which = {evenly(choose, sorted(arguments)) for _ in range(evenly(choose, (1, 1, 2)))}
    changed = {argument: arguments[argument].change(choose, values[argument]) for argument in which}
    values |= {argument: change.value for argument, change in changed.items()}
    words = f"{name} with {', '.join(f'{argument}: {change.words}' for argument, change in changed.items())}"
    before = {argument: bits(value) for argument, value in values.items()}
    again = {argument: fresh(value) for argument, value in values.items()}
    refused = any(change.verdict == REFUSED for change in changed.values())
    same = all(change.verdict == SAME for change in changed.values())
    count_wrong(campaign, name, not same)
    result, failure = _outcome(function, values)
    if failure is not None:
        assert not same, f"{words} must be accepted, gave {failure!r}"
        assert _names(failure, changed if refused else arguments), f"{words} must be named, gave {failure!r}"
        assert {argument: bits(value) for argument, value in values.items()} == before, f"{words} changed something"
        count(campaign, "calls refused with a typed error")
        return
    assert not refused, f"{words} must be refused, gave {result!r}"
    unmoved = {argument: bits(value) for argument, value in values.items() if argument != function.moves}
    assert unmoved == {argument: before[argument] for argument in unmoved}, f"{words} changed something"
    finite = all(bool(tensor.isfinite().all()) for tensor in _computed(result, again.get("posterior")))
    assert finite or function.copies, f"{words} gave what is not finite: {result!r}"
    if not any(change.words == "half" and argument == "posterior" for argument, change in changed.items()):
        with use_references():
            widen = fresh if function.draws else wide
            expected = function.call(**{argument: widen(value) for argument, value in again.items()})
        assert agree(result, expected, TOLERANCE[problem.x.dtype]), f"{words} gave {result!r}, and not {expected!r}"
        count(campaign, "results equal to the float64 reference")


def _computed(result: object, given: object) -> list[Tensor]:
    """The tensors of a result that differ from those of the given posterior, which may hold NaN."""
    if isinstance(result, SelectionResult):
        return [result.utilities, *_computed(result.posterior, given)]
    if isinstance(result, (tuple, list)):
        return [tensor for part in result for tensor in _computed(part, given)]
    if not isinstance(given, LastLayerLaplace) or not isinstance(result, LastLayerLaplace):
        return tensors(result)
    kept = [
        new.shape == old.shape and bool(torch.allclose(new, old, rtol=0.0, atol=0.0, equal_nan=True))
        for new, old in zip(tensors(result), tensors(given), strict=True)
    ]
    kept[-1] |= not bool(tensors(given)[-1].isfinite().all())  # an update only adds to the precision
    return [tensor for tensor, same in zip(tensors(result), kept, strict=True) if not same]


def _outcome(function: Function, values: Mapping[str, object]) -> tuple[object, Exception | None]:
    try:
        return function.call(**values), None
    except TYPED as error:
        return None, error


def _names(error: Exception, arguments: Mapping[str, object]) -> bool:
    """Whether the message names one of these arguments, or a part of one."""
    file = getattr(arguments.get("path"), "value", None)
    if isinstance(error, (StorageError, OSError)) and file is not None and str(Path(file)) in str(error):
        return True  # it names the file itself
    frames = (frame.f_globals["__name__"] for frame, _ in traceback.walk_tb(error.__traceback__))
    if any(name.startswith("sklearn.") for name in frames):
        return True  # the message is scikit-learn's own
    names = [*arguments, *(["features"] if "X" in arguments else [])]
    names += OF_A_POSTERIOR if {"posterior", "selector"} & {*names} else []
    names += ["undo"] if "selector" in names else []  # there may be nothing to undo
    names += OF_A_STATE if "state_dict" in names else []
    return any(re.search(rf"\b{name}\b", str(error.args[0])) for name in names)


def try_calls(function: Function, name: str, examples: int, campaign: str = CAMPAIGN) -> None:
    """Try ``examples`` calls, the same ones every time; the smallest that fails is shown."""

    @the_same_every_time(examples)
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about features that are not standardised, or fits that stop early
            one_call(data.draw, function, name, campaign)

    tried()
