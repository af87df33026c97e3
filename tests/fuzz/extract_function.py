"""What ``extract`` accepts, and how a campaign changes each argument."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lapal_ext.features import extract
from tests.fuzz import changes, model_changes
from tests.fuzz.changes import EITHER, REFUSED, SAME, Argument, Changed, Choose, Options, evenly, pick
from tests.fuzz.head_functions import new_path, no_path
from tests.fuzz.small import Arguments, Function, Small

LAYERS = ("body", "act", "fc")


class Network(nn.Sequential):
    """Three layers, of which the last is the head."""

    def __init__(self, n_features: int, n_classes: int, dtype: torch.dtype) -> None:
        super().__init__()
        for name, shape in (("body", (n_features, 3)), ("fc", (3, n_classes))):
            layer = nn.utils.skip_init(nn.Linear, *shape, dtype=dtype)
            for parameter in layer.parameters():
                values = torch.arange(parameter.numel(), dtype=dtype).sin()
                parameter.data.copy_(values.view_as(parameter))
            self.add_module(name, layer)
            if name == "body":
                self.add_module("act", nn.Sequential(nn.Tanh(), nn.Dropout()))


def _seen(model: nn.Module, inputs: Tensor, layer: str, take: str) -> Tensor:
    """The input or the output of a layer of the network, in float64 and without a hook."""
    value = inputs.detach().double()
    if (layer, take) == ("", "input"):
        return value
    for name, part in model.named_children():
        if name == layer and take == "input":
            return value
        value = value.tanh() if name == "act" else value @ part.weight.double().T + part.bias.double()
        if name == layer:
            return value
    return value


class _Broken(nn.Module):
    """A network that returns no rows."""

    def __init__(self, n_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.fc = nn.utils.skip_init(nn.Linear, n_features, 2, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x[:0])


def _other_model(p: Small) -> Callable[[Choose, Network], Changed]:
    def change(choose: Choose, good: Network) -> Changed:
        def with_nan() -> Network:
            damaged = Network(p.x.shape[1], p.n_classes, p.x.dtype)
            damaged.body.weight.data.fill_(evenly(choose, (math.nan, math.inf)))
            return damaged

        options: Options = {
            "no model": (REFUSED, lambda: evenly(choose, (None, "x", 1, nn.Linear, lambda x: x, p.x))),
            "a training one": (SAME, good.train),
            # Depending on layer and data, the message may name the features or the layer instead of the model.
            "not finite": (EITHER, with_nan),
            "fewer rows": (EITHER, lambda: _Broken(p.x.shape[1], p.x.dtype)),
        }
        return pick(choose, options)

    return change


def _other_data(p: Small) -> Callable[[Choose, object], Changed]:
    x, y = p.x, p.y

    def change(choose: Choose, _: object) -> Changed:
        odd = evenly(choose, (y.double(), y > 0, y[:-1], y.double().tolist(), "x", y[None]))
        return pick(
            choose,
            {
                "no data": (REFUSED, lambda: evenly(choose, (None, 1, "x", b"x", {"x": x}, TensorDataset))),
                "no rows": (REFUSED, lambda: evenly(choose, (x[:0], [], TensorDataset(x[:0])))),
                "a scalar": (REFUSED, lambda: x[0, 0]),
                "no batches": (REFUSED, lambda: [evenly(choose, (None, 1, "x", {}, {"x": 1}, set()))]),
                "four parts": (REFUSED, lambda: [(x, y, y, y)]),
                "batches of arrays": (SAME, lambda: [part.numpy() for part in x.split(2)]),
                "an array": (SAME, x.numpy),
                "no labels": (REFUSED, lambda: [(x, odd)]),
                "labels in some": (REFUSED, lambda: [(x, y), x]),
                "inputs that are scalars": (REFUSED, lambda: [x[0, 0]]),
                # A network may give finite features for inputs that are not finite.
                "not finite": (EITHER, lambda: changes.entry(choose, x, evenly(choose, (math.nan, math.inf)))),
                "batches": (SAME, lambda: [*x.split(2)]),
                "a set of rows": (SAME, lambda: TensorDataset(x)),
            },
        )

    return change


def _other_layer(choose: Choose, _: object) -> Changed:
    return pick(
        choose,
        {
            "another type": (REFUSED, lambda: evenly(choose, (1, b"fc", ["fc"], nn.Linear, True, 1.5, object()))),
            "a foreign layer": (REFUSED, nn.Identity),
            "another name": (REFUSED, lambda: choose(st.text(min_size=1, max_size=5)) + "?"),
            "a name in a layer": (REFUSED, lambda: "act.2"),
            "another layer": (EITHER, lambda: evenly(choose, ("body", "act", "", "act.0", "act.1"))),
        },
    )


def _extract(choose: Choose, p: Small) -> Arguments:
    layer = choose(st.sampled_from([None, *LAYERS]))
    file = new_path(choose(st.sampled_from([".npy", ".safetensors"])))
    no_dtype = ("float32", None, torch.int64, torch.complex64, torch.bool, float, 32, np.float32)

    def other_path(choose: Choose, _: object) -> Changed:
        odd = {"another format": (REFUSED, lambda: evenly(choose, (file.with_suffix(".csv"), file.with_suffix(""))))}
        return pick(choose, {**no_path(choose, file), **odd})

    return {
        "model": Argument(Network(p.x.shape[1], p.n_classes, p.x.dtype).eval(), _other_model(p)),
        "data": Argument(p.x, _other_data(p)),
        "layer": Argument(layer, _other_layer),
        "take": changes.choice(choose(st.sampled_from(["input", "output"]))),
        "path": Argument(choose(st.sampled_from([None, file])), other_path),
        "batch_size": changes.integer(choose(st.integers(1, 3)), 1),
        "device": Argument("cpu", _other_device),
        "autocast": Argument(
            None, lambda choose, _: Changed(choose(st.sampled_from(no_dtype[2:])), REFUSED, "no dtype of autocast")
        ),
        "dtype": Argument(
            choose(st.sampled_from([torch.float32, torch.float64])),
            lambda choose, _: Changed(choose(st.sampled_from(no_dtype)), REFUSED, "no dtype of features"),
        ),
        "pool": Argument(None, _other_pool),
        "progress": changes.flag(False),
    }


def _other_pool(choose: Choose, _: object) -> Changed:
    """Each layer of the network gives one row for each input, which cannot be pooled."""
    wrong = ("max", "", "Last", 1, True, ["mean"], b"last", "last", "first", "mean")
    return Changed(evenly(choose, wrong), REFUSED, "a pool")


def _other_device(choose: Choose, _: object) -> Changed:
    made = model_changes.device("cpu").change(choose, "cpu")
    return made if made.value is not None else Changed(None, SAME, "None")


def _extracted(model: nn.Module, data: Any, take: str, **rest: Any) -> object:
    result = extract(model, data, take=take, **rest)
    if isinstance(data, Tensor) and isinstance(model, Network) and result.layer in {*LAYERS, ""}:
        expected = _seen(model, data, result.layer, take)
        torch.testing.assert_close(result.features.double(), expected, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return result.features, [] if result.targets is None else result.targets


FUNCTIONS = {"extract": Function(_extracted, _extract, draws=True)}
