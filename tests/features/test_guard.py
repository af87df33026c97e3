"""What the layer that is found gives is what the model returns, or an error or a warning says what to pass."""

import dataclasses
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lapal_ext import LastLayerLaplace
from lapal_ext.features import extract
from tests.draws import Draw

D, C = 6, 3
DRAW = Draw(0)
X = DRAW.normal(9, 8).float()
IMAGES = DRAW.normal(9, 2, 5, 5).float()


class Body(nn.Module):
    """Features [n, D] of a small network, and a head that each model below chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, D)

    def features_of(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.features_of(x))


class LowRank(nn.Module):
    """A layer and a product of two factors that is added to what it gives."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class LowRankTwice(LowRank):
    """As DoRA, whose norm needs the product of the factors too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (1 + self.up(self.down(x)).norm())


class LowRankLinear(nn.Linear):
    """The same as a subclass of a layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.lora_A, self.lora_B = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias) + self.lora_B(self.lora_A(x))


class Excited(nn.Module):
    """Squeeze and excitation, then a head that is a convolution over what is left of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(2, D, 1), nn.Linear(D, 3), nn.Linear(3, D)
        self.head = nn.Conv2d(D, C, 5)

    def features_of(self, images: Tensor) -> Tensor:
        z = self.conv(images)
        return z * torch.sigmoid(self.excite(torch.relu(self.squeeze(z.mean((2, 3))))))[..., None, None]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features_of(images)).flatten(1)


class Two(Body):
    def __init__(self, combine: Callable[[Tensor, Tensor], object], other: int = C) -> None:
        super().__init__()
        self.combine, self.fc, self.other = combine, nn.Linear(D, C), nn.Linear(D, other)

    def forward(self, x: Tensor) -> object:
        z = self.features_of(x)
        return self.combine(self.fc(z), self.other(z))


class Several(Body):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(D, C) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        z = self.features_of(x)
        return torch.stack([head(z) for head in self.heads]).mean(0)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def zero(layer: nn.Linear) -> nn.Linear:
    with torch.no_grad():
        for value in layer.parameters():
            value.zero_()
    return layer


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tensor([1.0, -2.0, 3.0])


class Functional(Body):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, D))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.features_of(x), self.weight)


class Integers(nn.Module):
    """A layer with weights in eight bits, which is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 127, (C, D), dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.float() / 100)


@dataclasses.dataclass
class Output:
    logits: Tensor
    projection: Tensor | None = None


class Cached(Body):
    """As language models, which return the values of each layer too: here the head is no linear layer."""

    def __init__(self, names: tuple[str, str], head: nn.Module) -> None:
        super().__init__()
        self.values, self.fc, self.names = nn.Linear(D, 4), head, names

    def forward(self, x: Tensor) -> object:
        z = self.features_of(x)
        values = types.SimpleNamespace(values=self.values(z), keys=z)
        return {self.names[0]: self.fc(z), self.names[1]: types.SimpleNamespace(layers=[values])}


class Slots:
    __slots__ = ("logits",)

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits = {"first": [logits]}


def with_head(head: nn.Module) -> Body:
    model = Body()
    model.fc = head
    return model


class After(Body):
    """A function of what a layer gives."""

    def __init__(self, function: Callable[[Tensor], object], classes: int = C) -> None:
        super().__init__()
        self.fc, self.function = nn.Linear(D, classes), function

    def forward(self, x: Tensor) -> object:
        return self.function(self.fc(self.features_of(x)))


def quantised(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao is to take its place
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def made(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make().eval()


OTHERS = {
    "an adapter": (lambda: with_head(LowRank(nn.Linear(D, C))), X, "'fc.up', .* 'fc', a LowRank, gives that: .*merge"),
    "an adapter that outweighs its layer": (
        lambda: with_head(LowRank(zero(nn.Linear(D, C)))),
        X,
        "'fc.up', .*, with other values.* 'fc', a LowRank, gives that: .*merge",
    ),
    "an adapter whose factors run twice": (
        lambda: with_head(LowRankTwice(nn.Linear(D, C))),
        X,
        "'fc.up', .* 'fc', a LowRankTwice, gives that: .*merge",
    ),
    "the values of a layer": (
        lambda: Cached(("logits", "past_key_values"), Integers()),
        X,
        r"'values', .* returns \(a tensor of shape \(9, 3\)\); 'fc', a Integers, gives .*take='output.logits' for",
    ),
    "the values of a layer, without a name": (
        lambda: Cached(("0", "1"), Integers()),
        X,
        r"'values', .* returns \(a tensor of shape \(9, 3\)\); 'fc', a Integers, gives .*take='output.0' for",
    ),
    "many tensors": (
        lambda: After(lambda z: [z * -k for k in range(2, 9)]),
        X,
        r"returns \((a tensor of shape \(9, 3\)(, )?){3} and 4 more, with other values\)",
    ),
    "an encoder that ends with a rising function": (
        lambda: nn.Sequential(nn.Linear(8, D), nn.BatchNorm1d(D), nn.ReLU()),
        X,
        "'0', .*'2', a ReLU, gives that: name the layer .*take='output'",
    ),
    "an encoder of tokens": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Linear(4, D), Mean(), nn.LayerNorm(D)),
        X,
        "'3', a LayerNorm, gives that: if model is an encoder without a head, pass take='output' .*pass pool='last'",
    ),
    "an adapter in each layer": (
        lambda: nn.Sequential(LowRank(nn.Linear(8, D)), nn.Tanh(), LowRank(nn.Linear(D, C)), nn.LogSoftmax(1)),
        X,
        "'2.up', .* '2', a LowRank, gives that: .*merge_and_unload",
    ),
    "squeeze and excitation": (Excited, IMAGES, "'excite', .*'head', a Conv2d, gives that: pass layer='head' for"),
    "an average": (lambda: Two(lambda a, b: (a + 2 * b) / 3), X, "several heads: pass one of layer='fc', 'other'"),
    "an ensemble of three": (Several, X, "several heads: pass one of layer='heads.0', 'heads.1', 'heads.2'"),
    "two heads side by side": (
        lambda: Two(lambda a, b: torch.cat([a, b], 1), 5),
        X,
        "'other', .*no layer gives that: na",
    ),
    "a batch norm after it": (
        lambda: with_head(nn.Sequential(nn.Linear(D, C), Scaled())),
        X,
        "'fc.0', .*'fc.1', a Scaled, gives that: pass layer='fc.1' for its input; otherwise name",
    ),
    "a dynamically quantised head": (
        lambda: quantised(nn.Sequential(nn.Linear(8, C))),
        X,
        "runs no torch.nn.Linear: pass layer=.*'0', a Linear, gives that: pass layer='0' for its input",
    ),
    "a product": (lambda: Two(lambda a, b: a * b.mean(1, keepdim=True), 5), X, "'other', .*no layer gives that: name"),
    "a mixture of softmaxes": (
        lambda: Two(lambda a, b: (a.softmax(1) + b.softmax(1)) / 2),
        X,
        "several heads: pass one of layer='fc', 'other'",
    ),
    "a functional head": (
        Functional,
        X,
        r"'body', gives .*\(9, 6\).* returns \(.*\(9, 3\)\); no layer gives that: nam",
    ),
    "a head in integers": (lambda: with_head(Integers()), X, "'body', .*'fc', a Integers, gives that: pass layer='fc'"),
    "a dataclass with two heads": (lambda: Two(Output), X, "several heads: pass one of layer='fc', 'other'"),
    "a dataclass with two widths": (lambda: Two(Output, 5), X, "several heads: pass one of layer='fc', 'other'"),
    "changed in place": (lambda: After(lambda z: z.mul_(-2.0)), X, "'fc', .* is not what model returns"),
    "a scale for each row": (lambda: After(lambda z: z / z.norm(dim=1, keepdim=True)), X, "'fc', .* is not what"),
    "a loss": (lambda: After(lambda z: {"loss": z.square().mean()}), X, r"'fc', .* returns \(a tensor of shape \(\)\)"),
    "no tensor": (lambda: After(lambda _: None), X, r"'fc', .* returns \(no tensor\)"),
    "a pooling layer": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh()), X, "'0', .*take='output'.* pool="),
    "a normalised embedding": (
        lambda: nn.Sequential(nn.Linear(8, D), nn.LayerNorm(D)),
        X,
        "'0', .*'1', a LayerNorm, gives that: .*take='output'",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_layer_that_is_not_the_head_is_refused(name: str) -> None:
    make, data, message = OTHERS[name]
    model = made(make)
    with pytest.raises(ValueError, match=f"(?s)^layer must be named, .*{message}"):
        extract(model, data)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


FOUND = {
    "logits": lambda: After(lambda z: z),
    "softmax": lambda: After(lambda z: z.softmax(1)),
    "log-softmax in a dict": lambda: After(lambda z: {"loss": z.sum(), "out": (z.log_softmax(1),)}),
    "softmax in float64": lambda: After(lambda z: z.double().softmax(1)),
    "a dataclass": lambda: After(Output),
    "slots": lambda: After(Slots),
    "an object of lists": lambda: After(Plain),
    "a distribution": lambda: After(lambda z: torch.distributions.Categorical(logits=z)),
    "a namespace": lambda: After(lambda z: types.SimpleNamespace(other=3, out=types.SimpleNamespace(y=z))),
    "one logit": lambda: After(lambda z: z.squeeze(1), 1),
    "one probability": lambda: After(lambda z: z.sigmoid(), 1),
    "an adapter as a subclass": lambda: with_head(LowRankLinear(D, C)),
    "classes first": lambda: After(lambda z: z[:, :, None, None]),
    "a layer that runs for nothing": lambda: Two(lambda a, _: a, 5),
    "a copy in half precision": lambda: After(lambda z: z.half()),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_head_is_found_by_what_the_model_returns(name: str) -> None:
    model = made(FOUND[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = extract(model, X)
    assert result.layer == "fc"
    torch.testing.assert_close(result.features, model.features_of(X).detach())


MEANT = {
    "a temperature": lambda z: z / 3,
    "a soft cap": lambda z: 5 * torch.tanh(z / 5),
    "a sigmoid for each class": torch.sigmoid,
    "the class": lambda z: z.argmax(1),
}


@pytest.mark.parametrize("name", MEANT)
def test_a_rising_function_of_what_the_head_gives_is_a_warning(name: str) -> None:
    model = made(lambda: After(MEANT[name]))
    with pytest.warns(
        UserWarning, match=r"^model returns something else than what layer 'fc' gives, .*layer=.*take="
    ) as w:
        result = extract(model, X)
    assert [warning.filename for warning in w] == [__file__]
    torch.testing.assert_close(result.features, model.features_of(X).detach())


def test_a_layer_that_is_named_is_taken_as_it_is() -> None:
    """The way that the messages say: its input is right where the layer is an adapter, and merged it is found."""
    model = made(OTHERS["an adapter"][0])
    features = extract(model, X, "fc").features
    torch.testing.assert_close(features, model.features_of(X).detach())
    logits, low_rank = model(X), model.fc
    merged = nn.Linear(D, C)
    with torch.no_grad():
        merged.weight.copy_(low_rank.base.weight + 0.5 * low_rank.up.weight @ low_rank.down.weight)
        merged.bias.copy_(low_rank.base.bias)
    model.fc = merged
    assert torch.equal(extract(model, X).features, features)
    posterior = LastLayerLaplace.from_linear(merged, features, standardize=True)
    torch.testing.assert_close(posterior.predict_logits(features), logits.detach(), rtol=1e-4, atol=1e-5)


def test_only_the_first_batch_is_compared() -> None:
    calls = []
    model = made(FOUND["softmax"])
    model.register_forward_hook(lambda *_: calls.append(1))
    extract(model, X, batch_size=3)
    assert len(calls) == 4


def test_a_field_of_the_output_is_named() -> None:
    model = made(lambda: After(lambda z: Output(z, z * 2)))
    assert torch.equal(extract(model, X, take="output.projection").features, model(X).projection.detach())
    with pytest.raises(
        TypeError, match=r"got Output: pass take='output.logits' or take='output.projection' for a field"
    ):
        extract(model, X, take="output")
    with pytest.raises(ValueError, match=r"^take must name a field, got none called 'states'.*take='output\.logits'"):
        extract(model, X, take="output.states")
    tuples = made(lambda: After(lambda z: (z, {"z": z + 1})))
    assert torch.equal(extract(tuples, X, take="output.1.z").features, tuples(X)[1]["z"].detach())
