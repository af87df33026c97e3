"""How a campaign changes an argument: to values that must be refused, that mean the same, or that may do either.

A change is a function from the accepted value to another one. ``REFUSED`` asks for a typed error that names the
argument, ``SAME`` for the result of the accepted value, ``EITHER`` for a right result or a typed error.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fuzz import arrays
from tests.layouts import LAYOUTS

REFUSED, SAME, EITHER = "refused", "same", "either"
Choose = Callable[[st.SearchStrategy[Any]], Any]
Options = dict[str, tuple[str, Callable[[], object]]]
"""words -> (verdict, value when called)"""


class Changed(NamedTuple):
    value: object
    verdict: str
    words: str


class Argument(NamedTuple):
    """A value that is accepted, and the other values it may be changed to."""

    good: Any
    change: Callable[[Choose, Any], Changed]


def evenly(choose: Choose, values: Sequence[Any]) -> Any:
    """One of these, each equally often: hypothesis draws the first of ``sampled_from`` more often than the others."""
    return values[Random(choose(st.integers(0, 2**64 - 1))).randrange(len(values))]


def one_of(choose: Choose, *values: Any) -> Any:
    return choose(st.sampled_from(values))


def pick(choose: Choose, options: Options) -> Changed:
    words = evenly(choose, sorted(options))
    verdict, make = options[words]
    return Changed(make(), verdict, words)


def entry(choose: Choose, tensor: Tensor, value: float) -> Tensor:
    changed = tensor.detach().clone(memory_format=torch.contiguous_format)
    changed.view(-1)[choose(st.integers(0, changed.numel() - 1))] = value
    return changed


def shapes_of(tensor: Tensor, keep: bool) -> Options:
    """Other shapes; with ``keep`` the number of rows stays, since that error would name another argument."""
    options: Options = {
        "a dimension more": (REFUSED, lambda: tensor[None]),
        "a dimension more at the end": (REFUSED, lambda: tensor[..., None].expand(*tensor.shape, 2)),
        "a scalar": (REFUSED, lambda: tensor.new_zeros(())),
    }
    if tensor.dim() == 2:
        options |= {
            "a column more": (REFUSED, lambda: torch.cat([tensor, tensor.new_ones(len(tensor), 1)], 1)),
            "no columns": (REFUSED, lambda: tensor[:, :0]),
            "flat": (REFUSED, tensor.flatten),
        }
        if tensor.shape[1] > 1:
            options["a column less"] = (REFUSED, lambda: tensor[:, 1:])
    elif not keep:
        options["one more"] = (REFUSED, lambda: torch.cat([tensor, tensor.new_zeros(1)]))
        if len(tensor):
            options["one less"] = (REFUSED, lambda: tensor[1:])
    return options


def not_here(tensor: Tensor) -> Options:
    return {
        "on meta": (REFUSED, lambda: tensor.to("meta")),
        "sparse": (REFUSED, tensor.to_sparse),
        "a list": (REFUSED, tensor.tolist),
    }


def in_arrays(choose: Choose, tensor: Tensor) -> Options:
    """The same numbers in arrays. A vector of integers may also be an array of objects, as pandas makes it."""
    seen, other = evenly(choose, sorted(arrays.SEEN)), evenly(choose, sorted(arrays.REFUSED))
    is_vector_of_integers = tensor.dtype == torch.int64 and tensor.dim() == 1
    verdict = SAME if other == "of objects" and is_vector_of_integers else REFUSED
    return {
        f"an array, {seen}": (SAME, lambda: arrays.SEEN[seen](arrays.as_array(tensor))),
        f"an array, {other}": (verdict, lambda: arrays.REFUSED[other](arrays.as_array(tensor))),
    }


def floats(choose: Choose, x: Tensor) -> Options:
    wrong = [dtype for dtype in (torch.float32, torch.float64) if dtype != x.dtype]
    wrong += [torch.int64, torch.uint8, torch.bool, torch.complex64]
    options: Options = {
        **not_here(x),
        **in_arrays(choose, x),
        "another dtype": (REFUSED, lambda: x.to(choose(st.sampled_from(wrong)))),
        "a parameter": (SAME, lambda: nn.Parameter(x.clone())),
        **{f"{name} memory": (SAME, lambda lay=lay: lay(x)) for name, lay in LAYOUTS.items()},
    }
    if x.numel():
        bad = st.sampled_from([math.nan, math.inf, -math.inf])
        largest = torch.finfo(x.dtype).max
        power = st.floats(-1.0, 1.0)
        options |= {
            "not finite": (REFUSED, lambda: entry(choose, x, choose(bad))),
            "another scale": (
                EITHER,
                lambda: (x.double() * largest ** choose(power)).clamp(-largest, largest).to(x.dtype),
            ),
            "one entry of another size": (EITHER, lambda: entry(choose, x, largest ** choose(power))),
            "negative": (EITHER, lambda: entry(choose, x, -(largest ** choose(power)))),
            "zeros": (EITHER, lambda: torch.zeros_like(x)),
            "one row repeated": (EITHER, lambda: x[:1].expand_as(x)),
        }
    return options


def features(x: Tensor, *, optional: bool = False) -> Argument:
    """A matrix of features [N, D] that must have D columns, and may be in half precision for a model in float32.

    Args:
        x: the accepted value.
        optional: whether it may be None.
    """

    def change(choose: Choose, good: Tensor) -> Changed:
        options = {**floats(choose, good), **shapes_of(good, keep=True)}
        options["half"] = (
            SAME if good.dtype == torch.float32 else REFUSED,
            lambda: good.to(one_of(choose, torch.float16, torch.bfloat16)),
        )
        if not optional:
            options["None"] = (REFUSED, lambda: None)
        return pick(choose, options)

    return Argument(x, change)


def any_features(x: Tensor) -> Argument:
    """A matrix [N, D] of any width and either dtype, as for a fit."""

    def change(choose: Choose, good: Tensor) -> Changed:
        options = {**floats(choose, good), **shapes_of(good, keep=True)}
        for width in ("a column more", "a column less"):
            options.pop(width, None)
        options |= {
            "None": (REFUSED, lambda: None),
            "another dtype": (
                REFUSED,
                lambda: good.to(one_of(choose, torch.int64, torch.bool, torch.complex64)),
            ),
        }
        if good.dtype == torch.float32:  # of float64, it would make a model in float32
            options["half"] = (SAME, lambda: good.to(one_of(choose, torch.float16, torch.bfloat16)))
        return pick(choose, options)

    return Argument(x, change)


def outside(size: int) -> st.SearchStrategy[int]:
    """The int64 numbers outside of [0, size)."""
    return st.integers(-(2**63), -1) | st.integers(size, 2**63 - 1)


def labels(y: Tensor, n_classes: int, *, optional: bool = False) -> Argument:
    def change(choose: Choose, good: Tensor) -> Changed:
        options = {
            **not_here(good),
            "a list": (SAME if good.dim() == 1 else REFUSED, good.tolist),
            **in_arrays(choose, good),
            **shapes_of(good, keep=False),
            "another kind": (
                REFUSED,
                lambda: good.to(one_of(choose, torch.float32, torch.bool, torch.complex64)),
            ),
            "a narrower integer": (
                SAME,
                lambda: good.to(one_of(choose, torch.uint8, torch.int8, torch.int32)),
            ),
            "strided": (SAME, lambda: LAYOUTS["transposed"](good)),
        }
        if not optional:
            options["None"] = (REFUSED, lambda: None)
        if len(good):
            options["no class"] = (REFUSED, lambda: entry(choose, good, choose(outside(n_classes))))
            options["other classes"] = (EITHER, lambda: entry(choose, good, choose(st.integers(0, n_classes - 1))))
        return pick(choose, options)

    return Argument(y, change)


def rows(indices: Tensor, size: int, *, optional: bool = True) -> Argument:
    """Distinct rows of a pool, integers of any type: [K], or [M, b] where they are not ``optional``."""

    def change(choose: Choose, good: Tensor) -> Changed:
        shapes = shapes_of(good, keep=True)
        for width in ("a column more", "a column less"):
            shapes.pop(width, None)
        options = {
            **not_here(good),
            **in_arrays(choose, good),
            "a list": (SAME, good.tolist),
            "an array, of objects": (SAME, lambda: arrays.as_array(good).astype(object)),
            **shapes,
            "another kind": (REFUSED, lambda: good.to(one_of(choose, torch.float64, torch.bool))),
            "narrower": (SAME, lambda: good.to(torch.int32)),
            "no row": (
                REFUSED,
                lambda: entry(choose, good, choose(outside(size))),
            ),
            "a row twice": (REFUSED, lambda: torch.cat([good, good[..., :1]], -1)),
            "strided": (SAME, lambda: LAYOUTS["transposed"](good)),
        }
        if not optional:
            options["None"] = (REFUSED, lambda: None)
        return pick(choose, options)

    return Argument(indices, change)


def number(
    good: float, *, above_zero: bool = False, optional: bool = False, low: float = 5e-324, high: float | None = None
) -> Argument:
    """A number >= 0, which a campaign changes to another one in [low, high].

    A fit whose prior is no more than rounding, or much more than all rows, has weights that no dtype resolves
    (tests/posterior/test_map_fit.py), so that results in float32 and float64 are not compared there.
    """

    def change(choose: Choose, good: float) -> Changed:
        options: Options = {
            "negative": (REFUSED, lambda: -choose(st.floats(min_value=1e-300, allow_infinity=False))),
            "not finite": (REFUSED, lambda: one_of(choose, math.nan, math.inf, -math.inf, 10**400)),
            "no number": (
                REFUSED,
                lambda: one_of(choose, True, "1", [1.0], torch.tensor(1.0), np.True_, 1j),
            ),
            "another type": (SAME, lambda: one_of(choose, np.float64, Fraction)(good)),
            "another": (EITHER, lambda: choose(st.floats(low, high, allow_infinity=False))),
        }
        options["zero"] = (REFUSED if above_zero else EITHER, lambda: one_of(choose, 0, 0.0, -0.0))
        if not optional:
            options["None"] = (REFUSED, lambda: None)
        return pick(choose, options)

    return Argument(good, change)


def integer(good: int, low: int, high: int | None = None, *, optional: bool = False) -> Argument:
    """An integer in [low, high]; ``high=None`` where a larger one would only take longer."""

    def change(choose: Choose, good: int) -> Changed:
        options: Options = {
            "too small": (REFUSED, lambda: choose(st.integers(-(10**30), low - 1))),
            "no integer": (
                REFUSED,
                lambda: one_of(choose, 1.0, "1", True, [1], math.nan, torch.tensor(1.0), np.True_),
            ),
            "several": (REFUSED, lambda: torch.tensor([1, 2])),
            "another type": (SAME, lambda: one_of(choose, np.int64, np.uint8, torch.tensor)(good)),
            "beyond int64": (REFUSED, lambda: choose(st.integers(2**63, 10**30))),
        }
        if high is not None:
            options["too large"] = (REFUSED, lambda: choose(st.integers(high + 1, 2**63)))
        if not optional:
            options["None"] = (REFUSED, lambda: None)
        return pick(choose, options)

    return Argument(good, change)


def choice(good: object, *, optional: bool = False) -> Argument:
    def change(choose: Choose, _: object) -> Changed:
        options: Options = {
            "another name": (REFUSED, lambda: choose(st.text(max_size=8)) + "?"),
            "no name": (REFUSED, lambda: one_of(choose, 1, True, b"x", ["newton"], 1.5, torch.tensor(1))),
        }
        if not optional:
            options["None"] = (REFUSED, lambda: None)
        return pick(choose, options)

    return Argument(good, change)


def flag(good: bool) -> Argument:
    values = ("no", 1, 0, None, 1.0, torch.tensor(True), np.int64(1), [])
    return Argument(good, lambda choose, _: Changed(choose(st.sampled_from(values)), REFUSED, "no flag"))


def standardize(good: bool | str) -> Argument:
    values = ("no", "column", "", 1, 0, None, 1.0, torch.tensor(True), np.int64(1), [], ["columns"])
    return Argument(good, lambda choose, _: Changed(choose(st.sampled_from(values)), REFUSED, "no way to standardise"))


def generator(seed: int) -> Argument:
    values = (0, "cpu", torch.Generator, np.random.default_rng(0), 1.0, object())
    good = torch.Generator().manual_seed(seed)
    return Argument(good, lambda choose, _: Changed(choose(st.sampled_from(values)), REFUSED, "no generator"))


def the_same_every_time(examples: int) -> settings:
    """How a campaign draws its cases; of those that fail, the smallest is shown."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
