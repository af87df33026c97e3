"""How a campaign changes posteriors, layers, states and sources of labels; see ``changes``."""

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace
from tests.fuzz.changes import (
    EITHER,
    REFUSED,
    SAME,
    Argument,
    Changed,
    Choose,
    Options,
    entry,
    floats,
    in_arrays,
    not_here,
    outside,
    pick,
    shapes_of,
)


def model(good: LastLayerLaplace, *, fitted: bool = True, foreign: bool = False) -> Argument:
    """A posterior, which a campaign replaces by a damaged one or by another object.

    Args:
        good: the accepted value.
        fitted: whether it must be fitted.
        foreign: whether another object may be passed instead; not if it is the object of a method.
    """

    def change(choose: Choose, good: LastLayerLaplace) -> Changed:
        options: Options = {
            "half": (REFUSED if foreign else EITHER, lambda: good.clone().half()),
            "a broken state": (EITHER, lambda: broken(choose, good)),
            "another broken state": (EITHER, lambda: broken(choose, good)),
        }
        if foreign:
            others = (None, "x", 1, good.to_linear(), LastLayerLaplace)
            options["no posterior"] = (REFUSED, lambda: choose(st.sampled_from(others)))
        if fitted:
            options["not fitted"] = (REFUSED, lambda: LastLayerLaplace(good.mean[:, : good.num_features]))
        return pick(choose, options)

    return Argument(good, change)


def broken(choose: Choose, good: LastLayerLaplace) -> LastLayerLaplace:
    """A copy with one buffer damaged: not finite, huge, not symmetric or not positive semi-definite."""
    damaged = good.clone()
    name = choose(st.sampled_from(["covariance"] * 3 + ["mean", "precision", "centre", "scale"]))
    buffer = getattr(damaged, name)
    square = name in {"covariance", "precision"}
    kinds = ["negative", "not finite", "huge", "zero"] + ["not symmetric", "one direction negative"] * square
    match choose(st.sampled_from(kinds)):
        case "negative":
            buffer.neg_()
        case "not symmetric":
            buffer[-1, 0] += choose(st.floats(0.01, 100.0))
        case "one direction negative":
            direction = nn.functional.normalize(torch.ones_like(buffer[0]), dim=0)
            buffer -= choose(st.floats(1.5, 100.0)) * (direction @ buffer @ direction) * direction.outer(direction)
        case "not finite":
            place = choose(st.integers(0, buffer.numel() - 1))
            buffer.view(-1)[place] = choose(st.sampled_from([math.nan, math.inf, -math.inf]))
        case "huge":
            buffer.mul_(torch.finfo(buffer.dtype).max ** choose(st.floats(0.1, 1.0)))
        case "zero":
            buffer.zero_()
    return damaged


def weight(good: Tensor) -> Argument:
    """The weight of a layer, [C, D]; its bias has the same classes and dtype, so that neither may change alone."""

    def change(choose: Choose, good: Tensor) -> Changed:
        options = {**floats(choose, good), **not_here(good)}
        for name in ("a column more", "a column less"):
            options.pop(name, None)
        options |= {
            "None": (REFUSED, lambda: None),
            "a vector": (REFUSED, lambda: good[0]),
            "one class": (REFUSED, lambda: good[:1]),
            "no features": (REFUSED, lambda: good[:, :0]),
            "half": (REFUSED, good.half),
        }
        return pick(choose, options)

    return Argument(good, change)


def bias(good: Tensor) -> Argument:
    def change(choose: Choose, good: Tensor) -> Changed:
        options = {**floats(choose, good), **not_here(good), **shapes_of(good, keep=False)}
        return pick(choose, options)

    return Argument(good, change)


def head(good: nn.Linear) -> Argument:
    def change(choose: Choose, good: nn.Linear) -> Changed:
        damaged = nn.utils.skip_init(nn.Linear, good.in_features, good.out_features, dtype=good.weight.dtype)
        with torch.no_grad():
            damaged.weight.copy_(entry(choose, good.weight, choose(st.sampled_from([math.nan, math.inf]))))
            damaged.bias.zero_()
        single = nn.utils.skip_init(nn.Linear, good.in_features, 1, dtype=good.weight.dtype)
        nn.init.zeros_(single.weight)
        nn.init.zeros_(single.bias)
        return pick(
            choose,
            {
                "no layer": (REFUSED, lambda: choose(st.sampled_from([None, "x", nn.Identity(), nn.Linear]))),
                "a weight": (REFUSED, lambda: good.weight),
                "not finite": (REFUSED, lambda: damaged),
                "one logit": (EITHER, lambda: single),
                "on meta": (REFUSED, lambda: nn.Linear(good.in_features, good.out_features, device="meta")),
            },
        )

    return Argument(good, change)


def prior_precisions(good: Tensor, *, any_shape: bool = False) -> Argument:
    """A grid of prior precisions, or None."""

    def change(choose: Choose, good: Tensor) -> Changed:
        beyond = st.floats(max_value=0.0) | st.sampled_from([math.nan, math.inf, 1e-320, 1e309])
        options: Options = {
            **not_here(good),
            **in_arrays(choose, good),
            "integers": (REFUSED, good.long),
            "outside": (REFUSED, lambda: entry(choose, good.double(), choose(beyond))),
            "extreme": (EITHER, lambda: entry(choose, good.double(), 10.0 ** choose(st.floats(-37.0, 37.0)))),
            "another dtype": (SAME, good.double),
        }
        if any_shape:
            options.pop("an array, 0-d", None)
        else:
            options["a scalar"] = (REFUSED, lambda: good[0])
            options["a matrix"] = (REFUSED, lambda: good[None])
            options["none of them"] = (REFUSED, lambda: good[:0])
        return pick(choose, options)

    return Argument(good, change)


def label_source(choose: Choose, y: Tensor, n_classes: int, *, asked: bool = True) -> Argument:
    """``targets`` of a selection: a name, labels of the pool, or an annotator."""
    answers = (None, 1.0, "1", True, n_classes, -1, 10**30, torch.tensor(0.0))
    good = choose(st.sampled_from(["predicted", y] + [lambda row: int(y[row])] * asked))

    def change(choose: Choose, _: object) -> Changed:
        numbers = y.double()
        wrong = [numbers, numbers.tolist(), y > 0, torch.cat([y, y]), y[None], y.to("meta"), "bogus", 1, b"predicted"]
        options: Options = {
            "no source": (REFUSED, lambda: choose(st.sampled_from(wrong))),
            "no class": (
                REFUSED,
                lambda: entry(choose, y, choose(outside(n_classes))),
            ),
        }
        if asked:
            answer = choose(st.sampled_from(answers))
            options["a wrong answer"] = (REFUSED, lambda: lambda _: answer)
        return pick(choose, options)

    return Argument(good, change)


def state(good: LastLayerLaplace) -> Argument:
    """A state dict of the same shapes, with one entry changed, missing or added."""
    saved = good.clone().state_dict()
    tensors = [name for name in saved if name != "_extra_state"]

    def change(choose: Choose, _: object) -> Changed:
        name = choose(st.sampled_from(tensors))
        rest = {key: value for key, value in saved.items() if key != name}
        attribute = choose(st.sampled_from(sorted(saved["_extra_state"].keys() - {"class_names"})))
        nonsense = choose(st.sampled_from([None, -1.0, "bogus", math.nan, [1], torch.zeros(1)]))

        def put(value: object) -> Callable[[], object]:
            return lambda: saved | {name: value}

        return pick(
            choose,
            {
                "a name less": (REFUSED, lambda: rest),
                "a name more": (REFUSED, lambda: saved | {choose(st.text(min_size=1, max_size=5)): torch.zeros(1)}),
                "another shape": (REFUSED, put(saved[name][None])),
                "integers": (REFUSED, put(saved[name].long())),
                "not finite": (REFUSED, put(entry(choose, saved[name], math.nan))),
                "no tensor": (REFUSED, put(choose(st.sampled_from([None, 1.0, "x", saved[name].tolist()])))),
                "on meta": (REFUSED, put(saved[name].to("meta"))),
                "no attributes": (REFUSED, lambda: saved | {"_extra_state": nonsense}),
                "an attribute less": (REFUSED, lambda: saved | {"_extra_state": _without(saved, attribute)}),
                "a wrong attribute": (
                    REFUSED,
                    lambda: saved | {"_extra_state": saved["_extra_state"] | {attribute: nonsense}},
                ),
                "wrong class names": (
                    REFUSED,
                    lambda: saved | {"_extra_state": saved["_extra_state"] | {"class_names": nonsense or "bogus"}},
                ),
                "no class names": (REFUSED, lambda: saved | {"_extra_state": _without(saved, "class_names")}),
                "the same": (SAME, lambda: dict(saved)),
            },
        )

    return Argument(saved, change)


def _without(saved: dict[str, object], attribute: str) -> dict[str, object]:
    return {name: value for name, value in saved["_extra_state"].items() if name != attribute}


def device(good: str) -> Argument:
    values = st.text(max_size=6).filter(lambda text: text.split(":")[0] not in {"cpu", "cuda"}) | st.sampled_from(
        [None, 1.5, [], "cpu:x", "meta"]
    )
    return Argument(good, lambda choose, _: Changed(choose(values), REFUSED, "no device"))
