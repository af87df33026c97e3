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


class Convolutional(nn.Module):
    """As SqueezeNet: a head that is a 1 x 1 convolution, before or after the mean over positions."""

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


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_as_head(bias: bool) -> None:
    first, last = made(Convolutional, "mean first", bias), made(Convolutional, "head first", bias)
    for model, pool in ((first, None), (last, "mean")):
        result = extract(model, IMAGES, pool=pool)
        assert result.layer == "head"
        torch.testing.assert_close(result.features, model.features_of(IMAGES).detach())
    with pytest.raises(ValueError, match=r"takes the mean over positions, pass pool='mean', which is compared"):
        extract(last, IMAGES)
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


# Models of transformers, with random weights


def config(name: str, **more: Any) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": C}
    return getattr(transformers, name)(intermediate_size=8, max_position_embeddings=16, pad_token_id=0, **sizes, **more)


def network(name: str, configuration: Any) -> Any:
    import transformers

    return made(getattr(transformers, name), configuration)


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral"])
def test_a_decoder_of_transformers(kind: str) -> None:
    model = network(f"{kind}ForSequenceClassification", config(f"{kind}Config", num_key_value_heads=2))
    data = {"input_ids": torch.where(RIGHT.bool(), IDS, 0), "attention_mask": RIGHT}
    result = extract(model, data, pool="last", batch_size=4)
    assert result.layer == "score"
    check_logits(model.score, result.features, model(**data).logits)
    with pytest.raises(ValueError, match=r"pass pool='last', 'first' or 'mean'"):
        extract(model, data)


@pytest.mark.parametrize(
    ("kind", "layer"), [("Bert", "classifier"), ("DistilBert", "classifier"), ("Roberta", "classifier.out_proj")]
)
def test_an_encoder_of_transformers(kind: str, layer: str) -> None:
    model = network(f"{kind}ForSequenceClassification", config(f"{kind}Config", dim=8, n_heads=2, n_layers=1))
    data = {"input_ids": torch.where(RIGHT.bool(), IDS, 0), "attention_mask": RIGHT}
    result = extract(model, data)
    assert result.layer == layer
    check_logits(model.get_submodule(layer), result.features, model(**data).logits)


def test_an_encoder_of_transformers_without_a_head() -> None:
    model = network("BertModel", config("BertConfig"))
    data = {"input_ids": torch.where(RIGHT.bool(), IDS, 0), "attention_mask": RIGHT}
    with pytest.raises(ValueError, match=r"^layer must be named, .*'pooler.dense'.*take='output'.* pool="):
        extract(model, data)
    with pytest.raises(TypeError, match=r"pass take='output.last_hidden_state' or take='output.pooler_output'"):
        extract(model, data, take="output")
    states = model(**data).last_hidden_state.detach()
    assert torch.equal(extract(model, data, take="output.pooler_output").features, model(**data).pooler_output.detach())
    mean = extract(model, data, take="output.last_hidden_state", pool="mean").features
    torch.testing.assert_close(mean, (states * RIGHT[..., None]).sum(1) / RIGHT.sum(1, keepdim=True))


def test_states_of_a_language_model_are_pooled() -> None:
    """Its head gives what it returns, on every token: there is no pooled logit to compare."""
    model = network("GPT2LMHeadModel", config("GPT2Config", n_embd=8, n_layer=1, n_head=2))
    data = {"input_ids": IDS, "attention_mask": RIGHT}
    states = model.transformer(**data).last_hidden_state.detach()
    last = extract(model, data, pool="last")
    assert last.layer == "lm_head"
    torch.testing.assert_close(last.features, states[torch.arange(12), RIGHT.sum(1) - 1])
