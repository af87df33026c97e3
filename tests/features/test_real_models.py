"""From a backbone to a batch with models and data of other libraries (extra ``models``), with random weights.

A library that is missing is skipped by its name. The heads of some models begin at zero, so all matrices are drawn.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.features import extract
from lapal_ext.features.encoders import load_encoder
from tests.draws import Draw

pytestmark = [
    pytest.mark.filterwarnings("default"),  # of those libraries, about their own interfaces
    pytest.mark.filterwarnings("error::UserWarning:tests.features.test_real_models"),  # of ours
]

C, ROWS, T = 3, 12, 7
DRAW = Draw(0)
IDS = 5 + DRAW.integers(25, ROWS * T).view(ROWS, T)
LENGTHS = torch.arange(ROWS).roll(-5) % T + 1  # the first batch has no padding in its first row alone
RIGHT = (torch.arange(T) < LENGTHS[:, None]).long()
LEFT = RIGHT.flip(1)
IMAGES = DRAW.normal(ROWS, 3, 32, 32).float()
LABELS = torch.arange(ROWS) % C


def library(name: str) -> Any:
    reason = f'{name.partition(".")[0]} is missing: pip install "lapal_ext[models]"'
    return pytest.importorskip(name, reason=reason)


def texts(mask: Tensor = RIGHT) -> dict[str, Tensor]:
    return {"input_ids": torch.where(mask.bool(), IDS, 0), "attention_mask": mask}


def drawn(make: Callable[[], Any], words: tuple[str, ...] = ("",)) -> Any:
    """A model in evaluation mode, with matrices from one seed: of those parameters whose name has one of the words."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make().eval()
        for name, value in model.named_parameters():
            if value.dim() > 1 and any(word in name for word in words):
                value.normal_(0, (2 * len(value) / value.numel()) ** 0.5)
            elif words == ("",) and name.endswith("weight"):
                value.fill_(1.0)  # of normalisations, some of which begin at zero too
    return model


def logits_of(model: nn.Module, data: Any) -> Tensor:
    with torch.no_grad():
        result = model(**data) if isinstance(data, dict) else model(data)
    logits: Tensor = result if isinstance(result, Tensor) else result.logits
    return logits.flatten(1).float()


def check_recipe(model: Any, data: Any, layer: str, tolerance: float = 1e-4, **options: Any) -> None:
    """Features times head are the logits of the model, a batch is chosen and absorbed, and the model has learnt it."""
    expected = logits_of(model, data)
    result = extract(model, data, batch_size=5, **options)
    assert result.layer == layer
    head = model.get_submodule(layer)
    posterior = LastLayerLaplace.from_linear(head, result.features, standardize=True)
    scale = float(expected.abs().max())
    torch.testing.assert_close(posterior.predict_logits(result.features), expected, rtol=0, atol=tolerance * scale)
    picks = select_batch(posterior, result.features, batch_size=2).indices
    posterior.update(result.features[picks], expected[picks].argmin(dim=1))
    posterior.to_linear(out=head)
    told = posterior.predict_logits(result.features)
    assert (told - expected).abs().max() > 1e-3 * scale
    torch.testing.assert_close(logits_of(model, data), told, rtol=0, atol=tolerance * float(told.abs().max()))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("shufflenet_v2_x0_5", "fc"),
        ("efficientnet_b0", "classifier.1"),
        ("vit_b_16", "heads.head"),
    ],
)
def test_a_model_of_torchvision(name: str, layer: str) -> None:
    models = library("torchvision.models")
    small = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    make = models.VisionTransformer if name == "vit_b_16" else getattr(models, name)
    options = small if name == "vit_b_16" else {"weights": None}
    check_recipe(drawn(lambda: make(num_classes=C, **options)), IMAGES, layer)


def test_squeezenet_has_a_function_between_its_head_and_the_mean() -> None:
    model = drawn(lambda: library("torchvision.models").squeezenet1_1(num_classes=C))
    images = nn.functional.interpolate(IMAGES, size=64)
    with pytest.raises(ValueError, match="if model takes the mean over positions, pass pool='mean'"):
        extract(model, images)
    with pytest.raises(ValueError, match=r"^pool must .* if model computes a function .*layer='classifier\.1' takes"):
        extract(model, images, pool="mean")
    assert extract(model, images, "classifier.1", pool="mean").features.shape == (ROWS, 512)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("byobnet", "head.fc"),
        ("convnext", "head.fc"),
        ("efficientnet", "classifier"),
        ("mambaout", "head.fc"),
        ("nfnet", "head.fc"),
        ("resnet", "fc"),
        ("vit", "head"),
        ("vit3", "head"),
    ],
)
def test_a_model_of_timm(name: str, layer: str) -> None:
    timm = library("timm")
    size = {"img_size": 32} if name.startswith("vit") else {}
    check_recipe(drawn(lambda: timm.create_model(f"test_{name}", num_classes=C, **size)), IMAGES, layer)


def test_two_heads_of_timm_are_named() -> None:
    timm = library("timm")
    name, size = "deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 1}
    with pytest.raises(ValueError, match="several heads: pass one of layer='head', 'head_dist'"):
        extract(drawn(lambda: timm.create_model(name, num_classes=C, **size)), IMAGES)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_an_encoder_of_timm(name: str) -> None:
    timm = library("timm")
    size = {"img_size": 32} if name == "test_vit" else {}
    model = drawn(lambda: timm.create_model(name, num_classes=0, **size))
    with pytest.raises(ValueError, match=r"^layer must be named, .*pass take='output'"):
        extract(model, IMAGES)
    torch.testing.assert_close(extract(model, IMAGES, take="output").features, logits_of(model, IMAGES))


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TEXT_SIZES = {"vocab_size": 30, "max_position_embeddings": 16, "pad_token_id": 0}
OTHER_SIZES: dict[str, dict[str, Any]] = {
    "DistilBert": {"dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    "Llama": {"num_key_value_heads": 1},
    "Qwen2": {"num_key_value_heads": 1},
    "ViT": {"image_size": 32, "patch_size": 16},
}


def transformer(kind: str, task: str = "ForSequenceClassification") -> Any:
    transformers = library("transformers")
    sizes = SIZES | ({} if kind == "ViT" else TEXT_SIZES) | OTHER_SIZES.get(kind, {})
    config = getattr(transformers, f"{kind}Config")(num_labels=C, **sizes)
    return drawn(lambda: getattr(transformers, kind + task)(config))


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("Bert", "classifier"),
        ("Roberta", "classifier.out_proj"),
        ("DistilBert", "classifier"),
        ("DebertaV2", "classifier"),
    ],
)
def test_an_encoder_of_transformers(kind: str, layer: str) -> None:
    check_recipe(transformer(kind), texts(), layer)


def test_an_image_model_of_transformers() -> None:
    check_recipe(transformer("ViT", "ForImageClassification"), {"pixel_values": IMAGES}, "classifier")


@pytest.mark.parametrize("mask", [RIGHT, LEFT], ids=["right", "left"])
@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Qwen2"])
def test_a_decoder_of_transformers(kind: str, mask: Tensor) -> None:
    model = transformer(kind)
    check_recipe(model, texts(mask), "score", pool="last")
    with pytest.raises(ValueError, match=r"pass pool='last', 'first' or 'mean'"):
        extract(model, texts(mask))
    with pytest.raises(ValueError, match=r"^pool must give what model returns \(a tensor of shape \(12, 3\)"):
        extract(model, texts(mask), pool="mean")


def test_a_decoder_without_a_mask_is_refused_where_padding_begins() -> None:
    data = texts()
    data = {"input_ids": torch.cat([IDS[:8], data["input_ids"]])}
    with pytest.raises(
        ValueError, match=r"pool='last' is not that in the batch of data from row 8 on: .*attention_mask"
    ):
        extract(transformer("Llama"), data, pool="last", batch_size=8)


def test_an_encoder_of_transformers_without_a_head() -> None:
    model = transformer("Bert", "Model")
    with pytest.raises(ValueError, match=r"^layer must be named, .*'pooler.dense'.*take='output.last_hidden_state' or"):
        extract(model, texts())
    with pytest.raises(TypeError, match=r"pass take='output.last_hidden_state' or take='output.pooler_output'"):
        extract(model, texts(), take="output")
    states = model(**texts()).last_hidden_state.detach()
    mean = extract(model, texts(), take="output.last_hidden_state", pool="mean").features
    torch.testing.assert_close(mean, (states * RIGHT[..., None]).sum(1) / RIGHT.sum(1, keepdim=True))


def test_states_of_a_language_model_are_pooled() -> None:
    """Its head gives what it returns, on every token: there is no pooled logit to compare."""
    model = transformer("GPT2", "LMHeadModel")
    states = model.transformer(**texts()).last_hidden_state.detach()
    last = extract(model, texts(), pool="last")
    assert last.layer == "lm_head"
    torch.testing.assert_close(last.features, states[torch.arange(ROWS), LENGTHS - 1])


def test_an_encoding_of_a_tokenizer() -> None:
    encoding = library("transformers").BatchEncoding({**texts(), "labels": LABELS})
    model = transformer("Bert")
    result = extract(model, encoding, batch_size=5)
    torch.testing.assert_close(model.classifier(result.features), logits_of(model, texts()))
    assert torch.equal(result.targets, LABELS)


@pytest.mark.parametrize(("kind", "sizes"), [("ViT", OTHER_SIZES["ViT"] | SIZES), ("ConvNext", {"depths": [1] * 4})])
def test_an_encoder_by_name(kind: str, sizes: dict[str, Any], tmp_path: Any) -> None:
    transformers, image = library("transformers"), library("PIL.Image")
    model = drawn(lambda: getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)))
    model.save_pretrained(tmp_path / "model")
    size = {"height": 32, "width": 32} if kind == "ViT" else {"shortest_edge": 32}
    getattr(transformers, f"{kind}ImageProcessor")(size=size).save_pretrained(tmp_path / "model")
    image.new("RGB", (40, 30), (200, 10, 30)).save(tmp_path / "red.png")
    encoder = load_encoder(f"hf:{tmp_path / 'model'}", "images")
    batch = encoder.prepare([str(tmp_path / "red.png")] * 2)
    states = model(**batch).last_hidden_state.detach()
    expected = states.mean(1) if kind == "ViT" else states.mean((2, 3))
    features = extract(encoder.model, batch, take=encoder.take, pool=encoder.pool).features
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


HEADS = {"Bert": "classifier", "Llama": "score"}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoHa"])
def test_an_adapter_around_the_head(kind: str, method: str) -> None:
    peft = library("peft")
    targets, options = ["q_proj", "query", HEADS[kind]], {"pool": "last"} if kind == "Llama" else {}
    config = {
        "LoRA": lambda: peft.LoraConfig(r=2, target_modules="all-linear"),
        "DoRA": lambda: peft.LoraConfig(r=2, target_modules=targets, use_dora=True),
        "LoHa": lambda: peft.LoHaConfig(r=2, target_modules=targets),
    }[method]()
    base = transformer(kind)
    fresh = peft.get_peft_model(copy.deepcopy(base), config).eval()
    if method == "LoRA":  # adds nothing yet, so the layer inside is the head
        check_recipe(fresh, texts(), f"base_model.model.{HEADS[kind]}.base_layer", **options)
    model = drawn(lambda: peft.get_peft_model(base, config), ("lora_", "hada_"))
    message = rf"^layer must be named, .*'base_model.model.{HEADS[kind]}', a \w+, gives that: .*merge_and_unload\(\)"
    with pytest.raises(ValueError, match=message):
        extract(model, texts(), **options)
    expected = logits_of(model, texts())
    features = extract(model, texts(), f"base_model.model.{HEADS[kind]}", **options).features
    with pytest.raises(TypeError, match=r"^head must be a torch.nn.Linear, got .*merge_and_unload"):
        LastLayerLaplace.from_linear(model.get_submodule(f"base_model.model.{HEADS[kind]}"), features)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, texts()), expected, rtol=1e-3, atol=1e-3)
    check_recipe(merged, texts(), HEADS[kind], **options)


@pytest.mark.parametrize("kind", HEADS)
def test_an_adapter_beside_a_head_that_is_trained(kind: str) -> None:
    peft = library("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS")  # saves the head as a module
    model = drawn(lambda: peft.get_peft_model(transformer(kind), config), ("lora_", "modules_to_save"))
    options = {"pool": "last"} if kind == "Llama" else {}
    check_recipe(model, texts(), f"base_model.model.{HEADS[kind]}.modules_to_save.default", **options)


def test_an_adapter_around_a_head_of_timm() -> None:
    timm, peft = library("timm"), library("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    model = drawn(lambda: peft.get_peft_model(timm.create_model("test_convnext", num_classes=C), config))
    with pytest.raises(ValueError, match=r"'base_model.model.head.fc', a \w+, gives that: .*merge_and_unload\(\)"):
        extract(model, IMAGES)
    check_recipe(model.merge_and_unload(), IMAGES, "head.fc")


def test_weights_of_torchao_in_eight_bits() -> None:
    quantization = library("torchao.quantization")
    model = transformer("Bert")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    result = extract(model, texts())
    posterior = LastLayerLaplace.from_linear(model.classifier, result.features, standardize=True)
    logits = posterior.predict_logits(result.features)
    torch.testing.assert_close(logits, logits_of(model, texts()), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match=r"^out\.weight must be a plain tensor, got a parameter of Int8Tensor: leave"):
        posterior.to_linear(out=model.classifier)
    model = transformer("Bert")
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    with pytest.raises(ValueError, match=r"^head must compute W features \+ b, .*leave the head out of quantisation"):
        LastLayerLaplace.from_linear(model.classifier, extract(model, texts()).features, standardize=True)


# Data


def columns(count: int = ROWS) -> dict[str, Any]:
    data = {name: value[:count].tolist() for name, value in texts().items()}
    return {**data, "label": LABELS[:count].tolist(), "text": ["a b"] * count, "score": [0.5] * count}


def table() -> Any:
    return library("datasets").Dataset.from_dict(columns())


TABLES: dict[str, Callable[[], Any]] = {
    "plain": table,
    "of torch": lambda: table().with_format("torch"),
    "of NumPy": lambda: table().with_format("numpy"),
    "some columns": lambda: table().with_format("torch", columns=["input_ids", "attention_mask", "label"]),
    "classes": lambda: table().cast_column("label", library("datasets").ClassLabel(names=list("abc"))),
    "labels": lambda: table().rename_column("label", "labels"),
    "texts as classes": lambda: table().map(lambda row: {"label": "abc"[row["label"]]}).class_encode_column("label"),
    "a stream": lambda: table().to_iterable_dataset(),
    "a transform": lambda: table().with_transform(lambda rows: rows),
    "all rows": lambda: table()[:],
    "a loader": lambda: torch.utils.data.DataLoader(table().with_format("torch"), 5),
}


@pytest.fixture
def _quiet() -> Iterator[None]:
    datasets = library("datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", TABLES)
def test_a_dataset_of_datasets(name: str) -> None:
    model = transformer("Bert")
    result = extract(model, TABLES[name](), batch_size=5)
    torch.testing.assert_close(model.classifier(result.features), logits_of(model, texts()), rtol=1e-4, atol=1e-5)
    assert torch.equal(result.targets, LABELS)


@pytest.mark.usefixtures("_quiet")
def test_a_dataset_of_datasets_that_cannot_be_read() -> None:
    datasets, model = library("datasets"), transformer("Bert")
    named = table().map(lambda row: {"label": "abc"[row["label"]]})
    with pytest.raises(TypeError, match=r"must be a tensor of integers, got list of str: number the classes first"):
        extract(model, named)
    with pytest.raises(ValueError, match=r"must hold tensors of shape \(B, ...\), got text, .*texts need a tokenizer"):
        extract(model, table().select_columns(["text", "label"]).add_column("other", ["x"] * ROWS))
    with pytest.raises(TypeError, match="of a dict of datasets pass one"):
        extract(model, datasets.DatasetDict(train=table()))
    with pytest.raises(TypeError, match=r"^targets must be .*, got Column: pass torch.tensor\(...\) or numpy.asarray"):
        LastLayerLaplace.fit_map(torch.randn(ROWS, 4), table()["label"], C)


@pytest.mark.usefixtures("_quiet")
def test_a_dataset_of_images(tmp_path: Any) -> None:
    datasets, image = library("datasets"), library("PIL.Image")
    transforms = library("torchvision.transforms.v2")
    pictures = [image.fromarray(((x.clamp(-2, 2) + 2) * 60).byte().movedim(0, -1).numpy()) for x in IMAGES]
    types = datasets.Features(x=datasets.Image(), label=datasets.ClassLabel(names=list("abc")))
    data = datasets.Dataset.from_dict({"x": pictures, "label": LABELS.tolist()}, features=types)
    prepare = transforms.Compose([transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True)])
    model = drawn(lambda: library("torchvision.models").shufflenet_v2_x0_5(num_classes=C))
    with pytest.raises(TypeError, match=r"^data must hold tensors, .*, got \w*Image\w*: give the dataset a transform"):
        extract(model, data)
    ready = data.with_transform(lambda rows: {**rows, "x": [prepare(picture) for picture in rows["x"]]})
    result = extract(model, ready, path=tmp_path / "x.npy")
    expected = logits_of(model, torch.stack([prepare(picture) for picture in pictures]))
    torch.testing.assert_close(model.fc(result.features), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(extract(model, ready, path=tmp_path / "x.npy").targets, LABELS)


def test_labels_in_a_frame_of_pandas() -> None:
    pandas = library("pandas")
    frame = pandas.DataFrame({"number": LABELS.tolist(), "name": ["abc"[label] for label in LABELS]})
    features = IMAGES.flatten(1)[:, :5]
    for column in ("number", "name"):
        with pytest.raises(TypeError, match=r"^targets must be .*, got Series: pass its \.to_numpy\(\)"):
            LastLayerLaplace.fit_map(features, frame[column], class_names=list("abc"))
    one = LastLayerLaplace.fit_map(features, frame["number"].to_numpy(), C)
    other = LastLayerLaplace.fit_map(features, frame["name"].to_numpy(), class_names=list("abc"))
    assert torch.equal(one.mean, other.mean)


# Precision and devices


def some(name: str) -> tuple[Any, Any, str, dict[str, Any]]:
    match name:
        case "torchvision":
            return drawn(lambda: library("torchvision.models").resnet18(num_classes=C)), IMAGES, "fc", {}
        case "timm":
            make = library("timm").create_model
            return drawn(lambda: make("test_vit", num_classes=C, img_size=32)), IMAGES, "head", {}
        case "encoder":
            return transformer("Bert"), texts(), "classifier", {}
        case _:
            return transformer("Llama"), texts(), "score", {"pool": "last"}


SOME = pytest.mark.parametrize("name", ["torchvision", "timm", "encoder", "decoder"])


@SOME
def test_a_model_in_half_precision(name: str) -> None:
    model, data, layer, options = some(name)
    model = model.to(torch.bfloat16)
    if isinstance(data, Tensor):
        with pytest.raises(TypeError, match=r"^data must be torch.bfloat16 like the parameters of model"):
            extract(model, data)
        data = data.to(torch.bfloat16)
    check_recipe(model, data, layer, 3e-2, **options)


@SOME
def test_autocast_around_the_recipe_changes_nothing(name: str) -> None:
    model, data, layer, options = some(name)
    expected = logits_of(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        features = extract(model, data, **options).features
        posterior = LastLayerLaplace.from_linear(model.get_submodule(layer), features, standardize=True)
        logits = posterior.predict_logits(features)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@SOME
def test_another_default_device_changes_nothing(name: str) -> None:
    model, data, layer, options = some(name)
    expected = logits_of(model, data)
    torch.set_default_device("meta")
    try:
        features = extract(model, data, **options).features
        posterior = LastLayerLaplace.from_linear(model.get_submodule(layer), features, standardize=True)
        logits = posterior.predict_logits(features)
    finally:
        torch.set_default_device(None)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
