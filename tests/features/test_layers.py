"""The layer that features come from: named, given or found; and errors for layers that cannot be used."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapal_ext.features import extract
from tests.features.models import TinyCNN, digits, features_of, seeded

X = digits().images[:50]
MODEL: Any = seeded(TinyCNN).train()  # training mode, in which its features would differ


class Headed(nn.Module):
    """A body and several layers after it, in an order that each test chooses."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.body, self.order = nn.Linear(6, 4), order
        self.first, self.second, self.square = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Any:
        z = torch.relu(self.body(x))
        match self.order:
            case "two heads":
                return {"a": self.first(z), "b": (self.second(z) * 1,)}
            case "two returned":
                return self.first(z), self.square(self.second(z))
            case "averaged":
                return (self.first(z) + self.second(z)) / 2
            case "chain":
                return torch.log_softmax(self.square(self.first(z)), 1)
            case "twice":
                return self.square(self.square(self.first(z)))
            case "none":
                return z
        raise AssertionError


@pytest.mark.parametrize(
    ("layer", "take"),
    [("fc", "input"), (MODEL.fc, "input"), ("dropout", "output"), (MODEL.dropout, "output"), (None, "input")],
    ids=["name", "module", "output by name", "output of a module", "found"],
)
def test_a_layer_is_named_given_or_found(layer: Any, take: str) -> None:
    result = extract(MODEL, X, layer, take)
    torch.testing.assert_close(result.features, features_of(MODEL, X))
    assert result.layer == ("fc" if take == "input" else "dropout")


@pytest.mark.parametrize("layer", [None, "", "body"], ids=repr)
def test_an_encoder_without_a_head_gives_its_output(layer: str | None) -> None:
    encoder: Any = nn.Sequential()
    encoder.add_module("body", nn.Sequential(nn.Flatten(), nn.ReLU()))
    result = extract(encoder, X, layer, take="output")
    assert torch.equal(result.features, X.flatten(1).relu())
    assert result.layer == (layer or "")
    same = extract(encoder, X, encoder, take="output")
    assert (torch.equal(same.features, result.features), same.layer) == (True, "")


def test_features_are_those_before_a_later_change_in_place() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(inplace=True))
    result = extract(model, X, "1", "output")
    torch.testing.assert_close(result.features, model[1](X.flatten(1)).detach())
    assert bool((result.features < 0).any())


@pytest.mark.parametrize("order", ["chain"])
def test_the_last_layer_that_runs_is_found(order: str) -> None:
    assert extract(Headed(order), torch.ones(2, 6)).layer == "square"


def test_a_layer_may_be_called_by_keyword() -> None:
    class Keyword(TinyCNN):
        def forward(self, images: Tensor) -> Tensor:
            return self.fc(input=self.features_of(images))

    model = seeded(Keyword)
    torch.testing.assert_close(extract(model, X).features, features_of(model, X))


@pytest.mark.parametrize(
    ("order", "layer", "take", "message"),
    [
        ("two heads", None, "input", r"layer must be named, .* several heads: pass one of layer='first', 'second'"),
        ("two returned", None, "input", r"layer must be named, .* several heads: pass one of layer='first', 'square'"),
        ("averaged", None, "input", r"layer must be named, .* several heads: pass one of layer='first', 'second'"),
        ("twice", None, "input", r"layer must run once in a forward pass, 'square' ran 2 times: choose"),
        ("twice", "square", "output", r"layer must run once in a forward pass, 'square' ran 2 times: choose"),
        ("none", "first", "input", r"layer must run once in a forward pass, 'first' did not run: choose"),
        ("none", "head", "input", r"layer must be part of model, got 'head': its linear layers are 'body', 'first'"),
        ("none", nn.Linear(1, 1), "input", r"layer must be part of model, got Linear: its linear layers are"),
        ("none", 3, "input", r"layer must be a name, a torch\.nn\.Module or None, got int"),
        ("none", "body", "both", r"take must be one of 'input', 'output', got 'both'"),
        ("two heads", None, "output", r"the output of layer '' must be a tensor of floating point .*, got dict"),
    ],
)
def test_a_layer_that_cannot_be_used_is_explained(order: str, layer: Any, take: str, message: str) -> None:
    model = Headed(order)
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        extract(model, torch.ones(2, 6), layer, take)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_a_linear_layer_is_explained() -> None:
    with pytest.raises(ValueError, match=r"^layer must be named, since model runs no torch\.nn\.Linear: pass layer="):
        extract(nn.Flatten(), X)
    with pytest.raises(ValueError, match=r"model has no torch\.nn\.Linear, see model\.named_modules\(\)$"):
        extract(nn.Flatten(), X, "head")


def test_a_layer_whose_input_is_no_matrix_is_explained() -> None:
    tokens = nn.Sequential(nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"^the input of layer '0' must have shape \(50, D\).*got \(50, 1, 8, 8\)"):
        extract(tokens, X)
    with pytest.raises(ValueError, match=r"must have shape \(50, D\), one row for each input, got \(400, 8\)"):
        extract(nn.Sequential(nn.Flatten(0, 2), nn.Linear(8, 3)), X)
    widths = nn.Sequential(nn.Flatten(), nn.Identity())
    with pytest.raises(ValueError, match=r"^layer must get rows of one length, 64 so far, got 32 from row 50 of data"):
        extract(widths, [X, X[..., :4]], take="output")
