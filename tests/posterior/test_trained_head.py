"""``from_linear`` takes the layer for what it computes, or says what it saw; ``to_linear`` gives it back."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.spectral_norm import spectral_norm as spectral_norm_by_hook
from torch.nn.utils.weight_norm import WeightNorm

from lapal_ext import LastLayerLaplace
from tests.draws import Draw
from tests.eighths import Eighths

D, C = 7, 4


@pytest.fixture
def features(draw: Draw) -> Tensor:
    return draw.normal(40, D).float()


def layer(outputs: int = C, kind: Any = nn.Linear, *more: Any, **keywords: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        made = kind(D, outputs, *more, **keywords)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return made


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(functional.normalize(x, dim=1), functional.normalize(self.weight, dim=1), self.bias)


class Rounding(nn.Linear):
    """As layers of torchao that quantise their input too."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear((x * 8).round() / 8, self.weight, self.bias)


class Temperature(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2.5


class Adapted(nn.Linear):
    """Merges in evaluation mode, as loralib does, unless it must not."""

    def __init__(self, inputs: int, outputs: int, *, merges: bool) -> None:
        super().__init__(inputs, outputs)
        self.lora_a, self.lora_b = nn.Parameter(torch.ones(2, inputs)), nn.Parameter(torch.ones(outputs, 2))
        self.merges, self.merged = merges, False

    def train(self, mode: bool = True) -> "Adapted":
        super().train(mode)
        if self.merges and self.merged == mode:
            with torch.no_grad():
                self.weight += (-1 if mode else 1) * self.lora_b @ self.lora_a
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (0 if self.merged else x @ self.lora_a.T @ self.lora_b.T)


class WithLabels(nn.Linear):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) - labels[:, None]


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


def replaced(forward: Callable[[nn.Linear, Tensor], Tensor]) -> nn.Linear:
    made = layer()
    made.forward = lambda x: forward(made, x)
    return made


def hooked(hook: Any, *, before: bool = False) -> nn.Linear:
    made = layer()
    (made.register_forward_pre_hook if before else made.register_forward_hook)(hook)
    return made


OTHERS = {
    "a cosine": (lambda: layer(C, Cosine), ValueError, "got a Cosine that gives .* since its forward is another funct"),
    "a temperature": (lambda: layer(C, Temperature), ValueError, "gives .*, 0.4 times as much, as a temperature gives"),
    "an adapter": (lambda: layer(C, Adapted, merges=False), ValueError, "has an adapter: merge it first"),
    "a hook": (lambda: hooked(lambda _m, _x, out: out * 3), ValueError, "since hooks of the layer change it"),
    "a hook on the input": (
        lambda: hooked(lambda _m, x: (x[0] + 1,), before=True),
        ValueError,
        "since hooks of the la",
    ),
    "a forward put in its place": (
        lambda: replaced(lambda self, x: functional.linear(x.tanh(), self.weight, self.bias)),
        ValueError,
        "got a Linear that gives .* since its forward is another function",
    ),
    "labels": (
        lambda: layer(C, WithLabels),
        TypeError,
        "on features alone, got WithLabels, which raises TypeError: put",
    ),
    "two results": (lambda: layer(C, Pair), TypeError, r"must give a tensor of shape \(8, 4\) for 8 rows, got tuple"),
    "no shape yet": (lambda: nn.LazyLinear(C), ValueError, "weight must have a shape, got a lazy parameter"),
    "positions": (lambda: layer(C, nn.Conv2d, 3), ValueError, "must be a convolution with kernel, stride and groups"),
    "an adapter around it": (
        lambda: nn.Sequential(layer()),
        TypeError,
        r"must be a torch\.nn\.Linear, got Seq.*merge_an",
    ),
    "an adapter with the name of a layer, as of peft": (
        lambda: type("Linear", (nn.Sequential,), {})(layer()),
        TypeError,
        r"must be a torch\.nn\.Linear, got tests\.posterior\.test_trained_head\.Linear: merge an",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_that_computes_something_else_is_refused(name: str, training: bool, features: Tensor) -> None:
    make, error, message = OTHERS[name]
    head = make().train(training)
    with pytest.raises(error, match=rf"^head\.?.*{message}"):
        LastLayerLaplace.from_linear(head, features)
    if error is ValueError and "shape" not in name and "positions" not in name:
        posterior = LastLayerLaplace.from_linear(layer(), features)
        before = {key: value.clone() for key, value in head.state_dict().items()}
        with pytest.raises(ValueError, match=rf"^out\.?.*{message}"):
            posterior.to_linear(head)
        assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def with_spectral_norm_by_hook() -> nn.Linear:
    return spectral_norm_by_hook(layer())


def with_weight_norm_by_hook() -> nn.Linear:
    made = layer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch prefers parametrizations
        WeightNorm.apply(made, "weight", 0)
    with torch.no_grad():
        made.weight_g.mul_(0.5)  # the weight is computed when the layer runs
    return made


def pruned() -> nn.Linear:
    made = layer()
    prune.random_unstructured(made, "weight", 0.5)
    return made


def in_eighths(kind: Any = nn.Linear) -> nn.Linear:
    made = layer(C, kind)
    made.weight = nn.Parameter(Eighths((made.weight * 8).round().detach().to(torch.int8)), requires_grad=False)
    return made


def test_a_layer_that_rounds_its_input_is_refused(features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^head must compute .* since it rounds its input too \(leave the head out"):
        LastLayerLaplace.from_linear(in_eighths(Rounding), features)


def test_nothing_is_written_into_integers(features: Tensor) -> None:
    out = in_eighths()
    posterior, before = LastLayerLaplace.from_linear(out, features), out.bias.clone()
    posterior.update(features[:3], torch.tensor([0, 1, 2]))
    with pytest.raises(TypeError, match=r"^out\.weight must be a plain tensor, got a parameter of Eighths: leave"):
        posterior.to_linear(out)
    assert torch.equal(out.bias, before)


COMPUTED: dict[str, Callable[[], Any]] = {
    "plain": layer,
    "without bias": lambda: layer(C, nn.Linear, bias=False),
    "weight_norm": lambda: parametrizations.weight_norm(layer()),
    "weight_norm by a hook": with_weight_norm_by_hook,
    "spectral_norm": lambda: parametrizations.spectral_norm(layer()),
    "spectral_norm by a hook": with_spectral_norm_by_hook,
    "orthogonal": lambda: parametrizations.orthogonal(layer()),
    "pruned": pruned,
    "merged": lambda: layer(C, Adapted, merges=True),
    "a hook that only looks": lambda: hooked(lambda *_: None),
    "integers": in_eighths,
    "1 x 1": lambda: layer(C, nn.Conv2d, 1),
    "1": lambda: layer(C, nn.Conv1d, 1, bias=False),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_a_computed_weight_is_that_of_evaluation_mode(
    name: str, training: bool, standardize: bool, features: Tensor
) -> None:
    head = COMPUTED[name]().train(training)
    state = {key: value.clone() for key, value in head.state_dict().items()}
    posterior = LastLayerLaplace.from_linear(head, features, standardize=standardize)
    assert head.training is training
    for key, value in head.state_dict().items():
        assert torch.equal(getattr(value, "codes", value), getattr(state[key], "codes", state[key])), key
    x = features if isinstance(head, nn.Linear) else features[(..., *[None] * len(head.kernel_size))]
    expected = head.eval()(x)
    torch.testing.assert_close(posterior.predict_logits(features), expected.detach().flatten(1), rtol=1e-4, atol=1e-4)


BACK: dict[str, Callable[[], Any]] = {
    "a layer": layer,
    "one logit": lambda: layer(1),
    "one logit without bias": lambda: layer(1, nn.Linear, bias=False),
    "1 x 1": lambda: layer(C, nn.Conv2d, 1),
    "1 x 1 with one logit": lambda: layer(1, nn.Conv2d, 1),
    "1": lambda: layer(C, nn.Conv1d, 1, bias=False),
    "1 x 1 x 1": lambda: layer(C, nn.Conv3d, 1),
}


@pytest.mark.parametrize("name", BACK)
@pytest.mark.parametrize("standardize", [True, False])
def test_what_was_put_in_is_given_back(name: str, standardize: bool, features: Tensor, draw: Draw) -> None:
    head = BACK[name]()
    posterior = LastLayerLaplace.from_linear(head, features, standardize=standardize)
    x = features if isinstance(head, nn.Linear) else features[(..., *[None] * len(head.kernel_size))]
    logits = head(x).detach().flatten(1)
    if logits.shape[1] == 1:
        assert posterior.num_classes == 2
        torch.testing.assert_close(posterior.to_linear()(features).softmax(1)[:, 1:], logits.sigmoid())
    out = BACK[name]()
    with torch.no_grad():
        for parameter in out.parameters():
            parameter.zero_()
    assert posterior.to_linear(out) is out
    for given, back in zip(head.parameters(), out.parameters(), strict=True):
        torch.testing.assert_close(back, given, rtol=1e-4, atol=1e-5)
        assert standardize or torch.equal(back, given)
    posterior.update(features[:9], draw.integers(posterior.num_classes, 9))
    after = posterior.to_linear(out)(x).detach().flatten(1)
    expected = posterior.predict_logits(features)
    expected = expected if logits.shape[1] > 1 else expected[:, 1:] - expected[:, :1]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, logits, atol=1e-2)
