"""Arguments of every op changed at random: what the reference gives, or a typed error and nothing changed.

pytest -m slow tests/fuzz/test_bad_ops.py   # 200 and more wrong calls of every op, counted at the end
"""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lapal_ext.ops import OPS, Op, replace_ops
from tests.budget import error_of, mutated_names, outcome
from tests.draws import Arguments, cast
from tests.fuzz import changes
from tests.fuzz.calls import bits
from tests.fuzz.changes import (
    EITHER,
    REFUSED,
    SAME,
    Changed,
    Choose,
    Options,
    evenly,
    one_of,
    pick,
    the_same_every_time,
)
from tests.fuzz.tally import count, count_wrong
from tests.layouts import LAYOUTS
from tests.ops.examples import EXAMPLES, example

CAMPAIGN = "bad input of ops"
WANTED = 200
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-7}
SIZES = {"N": (0, 1, 2, 5), "E": (0, 1, 3, 17), "D": (1, 2, 5), "C": (2, 3, 7), "b": (1, 2, 4), "M": (0, 1, 3)}
SIZES |= {"S": (1, 4), "B": (0, 1, 2)}
OF_OTHER_KINDS = {
    "compute": (torch.int64, torch.float16, torch.bool, torch.complex64),
    "storage": (torch.int64, torch.bool, torch.complex64),
    "int64": (torch.int32, torch.float32, torch.bool),
    "bool": (torch.uint8, torch.float32, torch.int64),
}


def change_tensor(choose: Choose, op: Op, name: str, args: Arguments) -> Changed:
    good, spec = args[name], op.shapes[name]
    dtypes = OF_OTHER_KINDS[spec.kind]
    options: Options = {
        "a dimension more": (REFUSED, good[None].clone),
        "another dtype": (REFUSED, lambda: good.to(evenly(choose, dtypes))),
        "sparse": (REFUSED, good.to_sparse),
        "a list": (REFUSED, good.tolist),
        "another type": (REFUSED, lambda: one_of(choose, "x", 1, 1.0, object())),
        **{f"{layout} memory": (SAME, lambda lay=lay: lay(good)) for layout, lay in LAYOUTS.items()},
    }
    if sum(isinstance(value, Tensor) for value in args.values()) > 1:  # a call with meta tensors alone infers shapes
        options["on meta"] = (REFUSED, lambda: good.to("meta"))
    if good.dim():
        options["a dimension less"] = (REFUSED, lambda: torch.zeros(good.shape[:-1], dtype=good.dtype))
    letters = [letter for other in op.shapes.values() for letter in other.dims]
    for dim, letter in enumerate(spec.dims):
        others = [other for other, its in op.shapes.items() if letter in its.dims and args.get(other) is not None]
        if letters.count(letter) > 1 and (len(others) > 1 or spec.dims.count(letter) > 1):
            longer = torch.zeros([size + (dim == place) for place, size in enumerate(good.shape)], dtype=good.dtype)
            options[f"another {letter}"] = (REFUSED, lambda longer=longer: longer)
    if good.is_floating_point() and good.numel():
        largest = torch.finfo(good.dtype).max
        options |= {
            "not finite": (EITHER, lambda: changes.entry(choose, good, one_of(choose, math.nan, math.inf, -math.inf))),
            "a huge entry": (EITHER, lambda: changes.entry(choose, good, one_of(choose, -1, 1) * largest)),
            "all huge": (EITHER, lambda: good * largest**0.5),
            "another scale": (EITHER, lambda: good * 10.0 ** choose(st.floats(-3.0, 3.0))),
            "zeros": (EITHER, lambda: torch.zeros_like(good)),
        }
    if good.dtype == torch.int64 and good.numel():
        size = {"batches": "N", "targets": "C"}[name]
        options["out of range"] = (
            REFUSED,
            lambda: changes.entry(choose, good, choose(changes.outside(_size(op, args, size)))),
        )
    return pick(choose, options)


def _size(op: Op, args: Arguments, letter: str) -> int:
    for name, spec in op.shapes.items():
        if letter in spec.dims and args[name] is not None:
            return args[name].shape[spec.dims.index(letter)]
    raise KeyError(letter)


def change_other(choose: Choose, value: object) -> Changed:
    made = changes.choice(value) if isinstance(value, str) else changes.number(value)
    changed = made.change(choose, made.good)
    if changed.verdict == REFUSED:
        return changed
    return changed._replace(value=np.float64(changed.value))  # a reference does not accept a Fraction


def one_call(choose: Choose, op: Op) -> None:
    mutated = mutated_names(op)
    sizes = {letter: one_of(choose, *values) for letter, values in SIZES.items()}
    sizes["M"] = 0 if sizes["N"] == 0 else sizes["M"]  # no rows, no batches
    dtype = one_of(choose, torch.float32, torch.float64)
    pool_dtype = one_of(choose, dtype, torch.float16, torch.bfloat16)
    variant = one_of(choose, *EXAMPLES[op.name])
    args = cast(op, example(op.name, variant, seed=choose(st.integers(0, 2**32 - 1)), **sizes), dtype, pool_dtype)
    given_names = sorted(name for name, value in args.items() if value is not None)
    changed: dict[str, Changed] = {}
    for name in {evenly(choose, given_names) for _ in range(evenly(choose, (1, 1, 2)))}:
        tensor = isinstance(args[name], Tensor)
        changed[name] = change_tensor(choose, op, name, args) if tensor else change_other(choose, args[name])
    if sum(change.words == "on meta" for change in changed.values()) == 2:
        return  # a call with meta tensors alone is accepted
    sizes_changed = [change.words for change in changed.values() if re.fullmatch(r"another \w", change.words)]
    if len(sizes_changed) == 2:
        return  # both changed sizes may fit together
    values = args | {name: change.value for name, change in changed.items()}
    words = f"{op.name} ({variant}, {dtype}) with {', '.join(f'{name}: {c.words}' for name, c in changed.items())}"
    refused = [name for name, change in changed.items() if change.verdict == REFUSED]
    same = all(change.verdict == SAME for change in changed.values())
    count_wrong(CAMPAIGN, op.name, not same)
    before = {name: bits(value) for name, value in values.items()}
    again = {
        name: value.clone() if name in mutated and isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    text = _failure(op, values)
    assert not (same and text), f"{words} must be accepted, gave {text}"
    assert text or not refused, f"{words} must be refused"
    if text:
        assert any(re.search(rf"\b{name}\b", text) for name in changed), f"{words} must be named, gave {text}"
        assert {name: bits(value) for name, value in values.items()} == before, f"{words} changed something"
        count(CAMPAIGN, "calls refused with a typed error")
        return
    result = outcome(op, op, again).values
    reference = outcome(op.reference, op, again).values
    exact = outcome(op.reference, op, cast(op, again, torch.float64)).values
    unread = {name: bits(value) for name, value in again.items() if name not in mutated}
    assert unread == {name: before[name] for name in unread}, f"{words} changed an argument that it must not change"
    huge = any("huge" in change.words for change in changed.values())  # their differences are rounding errors
    if op.name == "absorb_labels" and not result["result 3"]:
        result = {"result 3": result["result 3"]}  # it says that the other results may be wrong
    for name, value in result.items():
        check_value(value, reference[name], exact[name], math.inf if huge else TOLERANCE[dtype], f"{words}, {name}")
    count(CAMPAIGN, "results equal to the reference")


def _failure(op: Op, values: Arguments) -> str:
    """The message of a typed error, or an empty text."""
    try:
        op(**values)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def check_value(value: Tensor, reference: Tensor, exact: Tensor, tolerance: float, words: str) -> None:
    """A kernel is finite wherever the reference in the same dtype is, and no finite number is wrong."""
    assert (value.shape, value.dtype) == (reference.shape, reference.dtype), words
    huge = math.isinf(tolerance)  # then either may overflow where the other does not
    if not value.is_floating_point():
        assert huge or torch.equal(value, reference), f"{words}: {value} and not {reference}"
        return
    assert huge or bool((value.isfinite() | ~reference.isfinite()).all()), f"{words}: {value} and not {reference}"
    assert not bool((value.isfinite() & exact.isnan()).any()), f"{words}: {value} and not {exact}"
    known = reference.isfinite() & exact.isfinite() & (value.isfinite() if huge else True)
    if known.any() and error_of(reference[known], exact[known].double()) <= tolerance / 2:
        error = error_of(value[known], exact[known].double())
        assert error <= tolerance, f"{words}: off by {error:.1e}, {value} and not {exact}"


def try_calls(op: Op, examples: int) -> None:
    @the_same_every_time(examples)
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        one_call(data.draw, op)

    tried()


@pytest.mark.parametrize("name", OPS)
def test_a_few_changed_calls_are_right_or_refused(name: str) -> None:
    try_calls(OPS[name], 25)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_many_changed_calls_are_right_or_refused(name: str) -> None:
    try_calls(OPS[name], 500)
    assert count_wrong(CAMPAIGN, name, 0) >= WANTED


def _reads_as_if_contiguous(logits: Tensor, variance: Tensor | None, kappa: float) -> Tensor:
    laid = logits if logits.is_contiguous() else logits.T.reshape(logits.shape)
    return OPS["predictive"].reference(laid, variance, kappa)


def _hides_nan(logits: Tensor, variance: Tensor | None, kappa: float) -> Tensor:
    return OPS["predictive"].reference(logits.nan_to_num(), variance, kappa)


def _writes_to_its_input(logits: Tensor, variance: Tensor | None, kappa: float) -> Tensor:
    result = OPS["predictive"].reference(logits, variance, kappa)
    logits.mul_(2.0)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("fault", [_reads_as_if_contiguous, _hides_nan, _writes_to_its_input])
def test_a_planted_fault_is_found(fault: Callable[..., Tensor]) -> None:
    with replace_ops({"predictive": fault}), pytest.raises(AssertionError, match=r"predictive \("):
        try_calls(OPS["predictive"], 3000)
