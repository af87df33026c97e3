"""``extract`` leaves the model as it was, also after an error."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapal_ext.features import extract
from tests.features.examples import X, expected
from tests.features.models import TinyCNN, seeded


class Failing(TinyCNN):
    def forward(self, images: Tensor) -> Tensor:
        result = super().forward(images)
        if len(images) < 16:
            raise RuntimeError("the third batch fails")
        return result


@pytest.mark.parametrize("kind", [TinyCNN, Failing])
@pytest.mark.parametrize("layer", [None, "fc"])
def test_the_model_is_left_as_it_was(kind: type[TinyCNN], layer: str | None) -> None:
    model: Any = seeded(kind).train()
    model.body[1].eval()  # a frozen batch norm in a model that trains
    model.fc.register_forward_pre_hook(lambda *_: None)
    modes = [module.training for module in model.modules()]
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="third batch") if kind is Failing else nullcontext():
        extract(model, X[:40], layer, batch_size=16, device="cpu")
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("part", ["wrapped", "itself", "body"])
@pytest.mark.parametrize("before", [True, False], ids=["run before", "never run"])
def test_a_compiled_model_gives_the_same_features(part: str, before: bool) -> None:
    """Compiled code ignores hooks that are added later, and keeps earlier ones: ``extract`` must not run it."""
    torch._dynamo.reset()
    model: Any = seeded(TinyCNN).eval()
    compiled = torch.compile(model, backend="eager") if part == "wrapped" else model
    if part != "wrapped":
        (model if part == "itself" else model.body).compile(backend="eager")
    if before:
        with torch.no_grad():  # as in ``extract``: with gradients, other code is compiled
            compiled(X)
    for layer in (None, "fc"):
        result = extract(compiled, X, layer)
        torch.testing.assert_close(result.features, expected(model))
        assert result.layer == "fc"
    torch.testing.assert_close(compiled(X), model.fc(expected(model)))


class Recorder(TinyCNN):
    """Records the devices that it is moved to, and does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[torch.device] = []

    def to(self, device: torch.device) -> "Recorder":  # type: ignore[override]
        self.moves.append(device)
        return self


@pytest.mark.skipif(torch.cuda.is_available(), reason="moving the inputs to CUDA must fail")
def test_the_model_is_moved_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cuda = Recorder(), torch.device("cuda:0")
    monkeypatch.setattr("lapal_ext.features.extraction.check_device", lambda _, device: torch.device(device))
    with pytest.raises((AssertionError, RuntimeError)):
        extract(model, X, device="cuda:0")
    assert model.moves == [cuda, torch.device("cpu")]
    model.fc.bias = nn.Parameter(model.fc.bias.to("meta"))
    with pytest.raises(ValueError, match=r"^device must be None for a model on several devices, got cuda:0$"):
        extract(model, X, device="cuda:0")
    assert model.moves == [cuda, torch.device("cpu")]


class Merging(nn.Linear):
    """As low-rank adapters do: evaluation merges the adapter into the weight, training takes it out again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.adapter, self.merged = nn.Parameter(torch.ones(outputs, inputs)), False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -self.adapter if mode else self.adapter
            self.merged = not mode
        return self


def test_a_module_whose_mode_changes_its_weights_is_restored() -> None:
    model = nn.Sequential(nn.Flatten(), Merging(X[0].numel(), 3), nn.Dropout(), nn.Linear(3, 2))
    model.train()
    model[2].eval()  # one part in another mode
    before = model[1].weight.detach().clone()
    extract(model, X)
    assert not model[1].merged
    torch.testing.assert_close(model[1].weight, before)
    assert [module.training for module in model] == [True, True, False, True]
