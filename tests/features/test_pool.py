"""``pool=``: heads that run on every token or position, of which the model picks one or takes the mean."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace
from lapal_ext.features import extract
from tests.draws import Draw

D, C, T = 6, 3, 5
DRAW = Draw(0)
IDS = 1 + DRAW.integers(19, 12 * T).view(12, T)
LENGTHS = 1 + DRAW.integers(T, 12)
RIGHT = (torch.arange(T) < LENGTHS[:, None]).long()  # padding on the right
LEFT = RIGHT.flip(1)
IMAGES = DRAW.normal(9, 2, 4, 4).float()


class Decoder(nn.Module):
    """As sequence classifiers of decoders: the head runs on every token, and the model pools the logits."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.embedding, self.body, self.pool = nn.Embedding(20, D), nn.Linear(D, D), pool
        self.score = nn.Linear(D, C)

    def hidden(self, input_ids: Tensor) -> Tensor:
        return torch.tanh(self.body(self.embedding(input_ids)).cumsum(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.score(self.hidden(input_ids))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = []
        for row, keep in zip(logits, mask.bool(), strict=True):
            match self.pool:
                case "last":
                    rows.append(row[keep][-1])
                case "first":
                    rows.append(row[keep][0])
                case "mean":
                    rows.append(row[keep].mean(0))
                case "max":
                    rows.append(row[keep].amax(0))
        return {"logits": torch.stack(rows)}


class Unmasked(Decoder):
    """A decoder that finds the last token by the number of the padding where there is no mask."""

    def __init__(self) -> None:
        super().__init__("last")

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(input_ids, input_ids != 0 if attention_mask is None else attention_mask)


class Adapted(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.lora_A, self.lora_B = base, nn.Linear(D, 2, bias=False), nn.Linear(2, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


class Convolutional(nn.Module):
    """A head that is a 1 x 1 convolution, before or after the mean over positions; rectified as in SqueezeNet."""

    def __init__(self, order: str, bias: bool = True) -> None:
        super().__init__()
        self.body, self.order = nn.Conv2d(2, D, 2), order
        self.head = nn.Conv2d(D, C, 1, bias=bias)

    def features_of(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        z = torch.relu(self.body(images))
        if self.order == "mean first":
            return self.head(z.mean((2, 3), keepdim=True)).flatten(1)
        if self.order == "rectified":
            return torch.relu(self.head(z)).mean((2, 3))
        return self.head(z).mean((2, 3)).log_softmax(1)


def made(kind: Any, *arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return kind(*arguments).eval()


def check_logits(head: Any, features: Tensor, logits: Tensor) -> None:
    posterior = LastLayerLaplace.from_linear(head, features, standardize=True)
    torch.testing.assert_close(posterior.predict_logits(features), logits.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", ["last", "first", "mean"])
@pytest.mark.parametrize("mask", [None, RIGHT, LEFT], ids=["none", "right", "left"])
def test_the_logits_of_a_decoder(pool: str, mask: Tensor | None) -> None:
    model = made(Decoder, pool)
    data = {"input_ids": IDS} if mask is None else {"input_ids": IDS, "attention_mask": mask}
    result = extract(model, data, pool=pool, batch_size=5)
    assert result.layer == "score"
    check_logits(model.score, result.features, model(**data)["logits"])


def test_tokens_of_the_output_are_pooled() -> None:
    model = made(Decoder, "last")
    data = {"input_ids": IDS, "attention_mask": RIGHT}
    states = model.body(model.embedding(IDS)).detach()
    mean = extract(model, data, "body", "output", pool="mean").features
    torch.testing.assert_close(mean, (states * RIGHT[..., None]).sum(1) / RIGHT.sum(1, keepdim=True))
    assert torch.equal(extract(model, data, "body", "output", pool="first").features, states[:, 0])


def test_padding_may_hold_anything() -> None:
    model = made(Decoder, "mean")
    model.embedding.weight.data[0] = torch.nan
    ids = torch.where(RIGHT.bool(), IDS, 0)
    result = extract(model, {"input_ids": ids, "attention_mask": RIGHT}, pool="mean")
    check_logits(model.score, result.features, model(ids, RIGHT)["logits"])


def test_another_pool_than_that_of_the_model_is_refused() -> None:
    data = {"input_ids": IDS, "attention_mask": RIGHT}
    for own, given in (("last", "first"), ("first", "mean"), ("mean", "last"), ("max", "last"), ("max", "mean")):
        with pytest.raises(
            ValueError, match=rf"^pool must give what model returns .* layer 'score' with pool='{given}'"
        ):
            extract(made(Decoder, own), data, pool=given)
    with pytest.raises(
        ValueError, match=r"^layer must be named, .*if model picks one token, pass pool='last', 'first' or"
    ):
        extract(made(Decoder, "last"), data)
    model = made(Decoder, "max")
    assert extract(model, data, "score", pool="last").features.shape == (12, D)  # a layer that is named is taken


@pytest.mark.parametrize("row", [5, 11])
def test_every_row_of_every_batch_is_compared(row: int, tmp_path: Any) -> None:
    """Padding that begins late, in data without a mask; the rows before it are kept, and not continued either."""
    model, path = made(Unmasked), tmp_path / "x.npy"
    ids = torch.cat([IDS, IDS])
    ids[12 + row, 3:] = 0
    data, start = {"input_ids": ids}, 12 + row // 6 * 6
    with pytest.raises(ValueError, match=rf"^pool must .* not that in the batch of data from row {start} on: .*_mask"):
        extract(model, data, pool="last", batch_size=6, path=path)
    for options in ({"path": path, "batch_size": 6}, {"batch_size": 24}):
        with pytest.raises(ValueError, match=r"^pool must .* with pool='last' is not that"):
            extract(model, data, pool="last", **options)
    result = extract(model, {"input_ids": ids, "attention_mask": ids != 0}, pool="last", batch_size=6)
    check_logits(model.score, result.features, model(ids)["logits"])


def test_an_adapter_around_a_head_that_runs_on_tokens() -> None:
    model, data = made(Decoder, "last"), {"input_ids": IDS, "attention_mask": RIGHT}
    model.score = made(Adapted, model.score)
    with pytest.raises(ValueError, match=r"^layer must .*'score.lora_B'.*; 'score', a Adapted, gives .*merge"):
        extract(model, data, pool="last")
    model.score.lora_B.weight.data.zero_()
    assert extract(model, data, pool="last").layer == "score.base"


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_as_head(bias: bool) -> None:
    first, last = made(Convolutional, "mean first", bias), made(Convolutional, "head first", bias)
    for model, pool in ((first, None), (last, "mean")):
        result = extract(model, IMAGES, pool=pool)
        assert result.layer == "head"
        torch.testing.assert_close(result.features, model.features_of(IMAGES).detach())
    with pytest.raises(ValueError, match=r"takes the mean over positions, pass pool='mean', which is compared"):
        extract(last, IMAGES)
    between = made(Convolutional, "rectified", bias)
    with pytest.raises(ValueError, match=r"^pool must .* if model computes a function between .*; layer='head' takes"):
        extract(between, IMAGES, pool="mean")
    check_logits(first.head, result.features, first(IMAGES))
    probabilities = LastLayerLaplace.from_linear(last.head, result.features, standardize=True)
    logits = probabilities.predict_logits(result.features)
    torch.testing.assert_close(logits.log_softmax(1), last(IMAGES).detach(), rtol=1e-4, atol=1e-4)


def test_dimensions_of_size_one_are_dropped() -> None:
    model = nn.Sequential(nn.Conv2d(2, D, 2), nn.AdaptiveAvgPool2d(1))
    result = extract(model, IMAGES, take="output")
    assert torch.equal(result.features, model(IMAGES).flatten(1).detach())
    one_token = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (1, 32)), nn.Linear(32, C))
    assert torch.equal(extract(one_token, IMAGES).features, IMAGES.flatten(1))


def test_what_pool_cannot_do_is_explained() -> None:
    model = made(Decoder, "last")
    data = {"input_ids": IDS, "attention_mask": RIGHT}
    for wrong in ("max", "", True, 1, ["last"]):
        with pytest.raises(ValueError, match=r"^pool must be one of 'last', 'first', 'mean', got"):
            extract(model, data, pool=wrong)  # type: ignore[arg-type]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(32, C))
    with pytest.raises(
        ValueError, match=r"^pool must be None, since the input of layer '1' has one row for each input"
    ):
        extract(flat, IMAGES, pool="last")
    with pytest.raises(ValueError, match=r"^attention_mask must have shape \(12, 5\), .* got \(12, 9\)"):
        extract(model.body, {"input": torch.ones(12, T, D), "attention_mask": torch.ones(12, 9)}, "", pool="last")
    empty = RIGHT.clone()
    empty[4] = 0
    with pytest.raises(
        ValueError, match=r"^attention_mask must keep a token of each input, got none in row 4 of a batch"
    ):
        extract(model.body, {"input": torch.ones(12, T, D), "attention_mask": empty}, "", pool="last")
    with pytest.raises(ValueError, match=r"^the output of layer '' must have shape \(12, D\).*pass pool='last'"):
        extract(nn.Embedding(20, D), IDS, take="output")


def test_the_pool_is_part_of_what_a_file_holds(tmp_path: Any) -> None:
    model, data = made(Decoder, "last"), {"input_ids": IDS, "attention_mask": RIGHT}
    path = tmp_path / "x.npy"
    kept = extract(model, data, "score", pool="last", path=path).features
    assert torch.equal(extract(model, data, "score", pool="last", path=path).features, kept)
    with pytest.raises(Exception, match="something else"):
        extract(model, data, "score", pool="mean", path=path)
