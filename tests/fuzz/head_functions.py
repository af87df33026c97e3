"""What loading, saving, naming, extending and calling a posterior accept, and how a campaign changes each argument."""

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace
from tests.fuzz import changes, model_changes
from tests.fuzz.changes import EITHER, REFUSED, SAME, Argument, Changed, Choose, Options, evenly, pick
from tests.fuzz.small import Arguments, Function, Small

_NUMBERS = itertools.count()
NAMES = ("ant", "bee", "cat", "dog", "eel")


@cache
def folder() -> Path:
    made = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, made)
    return Path(made)


def new_path(suffix: str = "") -> Path:
    return folder() / f"{next(_NUMBERS)}{suffix}"


class PathInBytes:
    """An ``os.PathLike`` whose path is bytes."""

    def __fspath__(self) -> bytes:
        return b"posterior"


def no_path(choose: Choose, file: Path) -> Options:
    return {
        "no path": (REFUSED, lambda: evenly(choose, (1, 1.5, [], {}, True, object(), b"x", torch.zeros(1)))),
        "a path in bytes": (REFUSED, PathInBytes),
        "no name": (REFUSED, str),
        "a null character": (REFUSED, lambda: f"{file}\0"),
        "a name that cannot be written": (REFUSED, lambda: f"{file}\ud800"),
        "a name too long": (REFUSED, lambda: str(file.with_name("x" * 300))),
        "a folder": (REFUSED, lambda: evenly(choose, (file.parent, ".", "/"))),
    }


def _saved(choose: Choose, p: Small) -> Argument:
    file = new_path()
    p.posterior.save(file)
    whole = file.read_bytes()

    def write(contents: bytes) -> Path:
        other = new_path()
        other.write_bytes(contents)
        return other

    def flipped() -> Path:
        place = choose(st.integers(0, len(whole) - 1))
        return write(whole[:place] + bytes([whole[place] ^ 1 << choose(st.integers(0, 7))]) + whole[place + 1 :])

    def change(choose: Choose, good: Path) -> Changed:
        return pick(
            choose,
            {
                **no_path(choose, good),
                "None": (REFUSED, lambda: None),
                "no file": (REFUSED, lambda: folder() / "missing"),
                "under a file": (REFUSED, lambda: good / "x"),
                "a text": (SAME, lambda: str(good)),
                "cut off": (REFUSED, lambda: write(whole[: choose(st.integers(0, len(whole) - 1))])),
                "a bit flipped": (REFUSED, flipped),
                "foreign": (REFUSED, lambda: write(choose(st.binary(max_size=40)))),
            },
        )

    return Argument(file, change)


def _load(choose: Choose, p: Small) -> Arguments:
    wrong = model_changes.device("cpu").change

    def device(choose: Choose, good: str) -> Changed:
        made = wrong(choose, good)
        return made if made.value is not None else Changed(torch.device("cpu"), SAME, "a device itself")

    return {"path": _saved(choose, p), "device": Argument(choose(st.sampled_from([None, "cpu"])), device)}


def _save(_: Choose, p: Small) -> Arguments:
    file = new_path()

    def change(choose: Choose, good: Path) -> Changed:
        outside = {"in no folder": (REFUSED, lambda: good / "x" / "y"), "a text": (SAME, lambda: str(good))}
        outside["None"] = (REFUSED, lambda: None)
        return pick(choose, no_path(choose, good) | outside)

    return {"posterior": model_changes.model(p.posterior, fitted=False), "path": Argument(file, change)}


def class_names(choose: Choose, n_classes: int) -> Argument:
    """One text for each class, or None."""
    good = choose(st.sampled_from([None, NAMES[:n_classes]]))
    names = list(NAMES[:n_classes])

    def change(choose: Choose, good: object) -> Changed:
        odd = evenly(choose, (None, 1, b"x", 1.5, ["x"], np.int64(1), True))
        same = {"a list": list, "an array": np.array, "an array of objects": lambda given: np.array(given, object)}
        kind = evenly(choose, sorted(same))
        return pick(
            choose,
            {
                "no names": (REFUSED, lambda: evenly(choose, ("x", "x" * n_classes, 1, 1.5, True, object(), str))),
                "a set": (REFUSED, lambda: evenly(choose, (set(names), frozenset(names), dict.fromkeys(names).keys()))),
                "no sequence": (REFUSED, lambda: evenly(choose, (np.array("x"), torch.tensor(1), b"x" * n_classes))),
                "too many": (REFUSED, lambda: [*names, "x"]),
                "too few": (REFUSED, lambda: names[1:]),
                "none of them": (REFUSED, lambda: evenly(choose, ([], (), {}, np.array([], dtype=str)))),
                "an empty one": (REFUSED, lambda: ["", *names[1:]]),
                "one twice": (REFUSED, lambda: [names[-1], *names[1:]]),
                "no text": (REFUSED, lambda: [odd, *names[1:]]),
                "numbers": (REFUSED, lambda: evenly(choose, (range(n_classes), torch.arange(n_classes)))),
                "any texts": (EITHER, lambda: [choose(st.text(max_size=2)) for _ in names]),
                f"{kind}": (SAME if good is not None else EITHER, lambda: same[kind](names)),
            },
        )

    return Argument(good, change)


def _set_names(choose: Choose, p: Small) -> Arguments:
    return {
        "posterior": model_changes.model(p.posterior, fitted=False),
        "class_names": class_names(choose, p.n_classes),
    }


def _add_class(choose: Choose, p: Small) -> Arguments:
    named = choose(st.booleans())
    posterior = p.posterior.clone()
    posterior.class_names = NAMES[: p.n_classes] if named else None

    def change(choose: Choose, _: object) -> Changed:
        odd = evenly(choose, (1, b"x", 1.5, ["x"], True, ("fox",), torch.tensor(1), np.array("fox")))
        options: Options = {
            "no name": (REFUSED, lambda: odd),
            "an empty name": (REFUSED, lambda: ""),
            "a name of another class": (REFUSED, lambda: NAMES[choose(st.integers(0, p.n_classes - 1))]),
            "any text": (EITHER if named else REFUSED, lambda: choose(st.text(max_size=3))),
        }
        options["None"] = (REFUSED if named else SAME, lambda: None)
        options["a text of NumPy"] = (SAME if named else REFUSED, lambda: np.str_("fox"))
        return pick(choose, options)

    return {
        "posterior": model_changes.model(posterior, fitted=False),
        "name": Argument("fox" if named else None, change),
    }


def _layer(like: nn.Linear, **other: Any) -> nn.Linear:
    arguments = {
        "in_features": like.in_features,
        "out_features": like.out_features,
        "bias": like.bias is not None,
        "dtype": like.weight.dtype,
        "device": "cpu",
    }
    made = nn.utils.skip_init(nn.Linear, **arguments | other)
    for parameter in made.parameters():
        if not parameter.is_meta:
            nn.init.constant_(parameter, 0.5)
    return made


def _with_weight(like: nn.Linear, weight: object) -> nn.Linear:
    made = _layer(like)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def _out(good: nn.Linear) -> Argument:
    def change(choose: Choose, good: nn.Linear) -> Changed:
        zeros = torch.zeros_like(good.weight)
        other = {torch.float32: torch.float64, torch.float64: torch.float32}[good.weight.dtype]

        def inference() -> nn.Linear:
            with torch.inference_mode():
                return _layer(good)

        def overlapping_bias() -> nn.Linear:
            made = _layer(good)
            if made.bias is None:
                return _with_weight(good, zeros[:1].expand_as(zeros))
            made.bias = nn.Parameter(made.bias.detach()[:1].expand_as(made.bias))
            return made

        return pick(
            choose,
            {
                "no layer": (REFUSED, lambda: evenly(choose, ("x", 1, nn.Identity(), nn.Linear, zeros, True))),
                "another dtype": (REFUSED, lambda: _layer(good, dtype=other)),
                "half": (
                    SAME if good.weight.dtype == torch.float32 else REFUSED,
                    lambda: _layer(good, dtype=torch.float16),
                ),
                "another width": (REFUSED, lambda: _layer(good, in_features=good.in_features + 1)),
                "another class": (REFUSED, lambda: _layer(good, out_features=good.out_features + 1)),
                "another bias": (REFUSED, lambda: _layer(good, bias=good.bias is None)),
                "on meta": (REFUSED, lambda: _layer(good, device="meta")),
                "computed": (REFUSED, lambda: nn.utils.parametrizations.weight_norm(_layer(good))),
                "without a shape yet": (REFUSED, lambda: nn.LazyLinear(good.out_features, good.bias is not None)),
                "made in inference mode": (REFUSED, inference),
                "one memory for all classes": (REFUSED, lambda: _with_weight(good, zeros[:1].expand_as(zeros))),
                "one memory for all biases": (REFUSED, overlapping_bias),
                "sparse": (REFUSED, lambda: _with_weight(good, zeros.to_sparse())),
                "by columns": (SAME, lambda: _with_weight(good, zeros.T.contiguous().T)),
                "None": (SAME, lambda: None),
            },
        )

    return Argument(good, change)


def _to_linear(_: Choose, p: Small) -> Arguments:
    return {
        "posterior": model_changes.model(p.posterior, fitted=False),
        "out": _out(_layer(p.posterior.to_linear())),
    }


def _forward(_: Choose, p: Small) -> Arguments:
    """Features with any number of rows and dimensions, whose values are not checked."""
    any_sizes = {"another scale", "one entry of another size", "negative"}  # which may overflow in float32 alone
    shapes = {"a dimension more", "a dimension more at the end", "flat"}  # which may still have D columns

    def change(choose: Choose, good: Tensor) -> Changed:
        options = {**changes.floats(choose, good), **changes.shapes_of(good, keep=True)}
        options |= {
            "half": (EITHER, good.half),  # right for a posterior in half precision
            "None": (REFUSED, lambda: None),
        }
        for words in [*options]:
            if words in any_sizes:
                del options[words]
            elif words in shapes or words == "not finite":
                options[words] = (EITHER, options[words][1])
            elif words.startswith("an array"):  # a module takes tensors
                options[words] = (REFUSED, options[words][1])
        return pick(choose, options)

    return {"posterior": Argument(p.posterior, _in_other_dtype), "features": Argument(p.x, change)}


def _in_other_dtype(choose: Choose, good: LastLayerLaplace) -> Changed:
    other = torch.float64 if good.mean.dtype == torch.float32 else torch.float32
    return Changed(good.clone().to(choose(st.sampled_from([other, torch.float16]))), EITHER, "of another dtype")


def _method(name: str) -> Callable[..., object]:
    return lambda posterior, **rest: getattr(posterior, name)(**rest)


def _named(posterior: LastLayerLaplace, class_names: Any) -> LastLayerLaplace:
    posterior.class_names = class_names
    return posterior


def _saved_and_back(posterior: LastLayerLaplace, path: str | os.PathLike[str]) -> LastLayerLaplace:
    posterior.save(path)
    return LastLayerLaplace.load(path)


def _written(posterior: LastLayerLaplace, out: nn.Linear | None) -> nn.Linear:
    layer = posterior.to_linear(out)
    assert out is None or layer is out
    return layer


FUNCTIONS = {
    "load": Function(LastLayerLaplace.load, _load),
    "save": Function(_saved_and_back, _save),
    "class_names": Function(_named, _set_names, moves="posterior", copies=True),
    "add_class": Function(_method("add_class"), _add_class, moves="posterior"),
    "to_linear (out)": Function(_written, _to_linear, moves="out"),
    "posterior (features)": Function(lambda posterior, features: posterior(features), _forward, copies=True),
}
