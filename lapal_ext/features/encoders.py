"""Encoders by name, for texts and images: from timm, from transformers, or from a function of the user's own."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TEXTS, IMAGES = "texts", "images"
_TOKENS = "output.last_hidden_state"
_FORMS = "module:function, timm:NAME or hf:NAME"


class MeanState(nn.Module):
    """The mean of the last states of an image model of transformers, over tokens or positions.

    Args:
        model: its ``last_hidden_state`` is [B, T, D], or [B, D, H, W] of a convolutional network.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:  # [B, D]
        """Run the model."""
        states: Tensor = self.model(**inputs).last_hidden_state
        return states.mean(1) if states.dim() == 3 else states.flatten(2).mean(2)


class Encoder(NamedTuple):
    """A model, and what makes a batch of its inputs of items."""

    model: nn.Module
    prepare: Callable[[Sequence[str]], Any]  # of texts, or of paths of images
    take: str = "output"  # as in ``extract``
    pool: str | None = None  # as in ``extract``


def load_encoder(name: str, kind: str) -> Encoder:
    """Load an encoder that is on this machine, or that its library can get.

    Args:
        name: ``timm:NAME``, a model of timm without its classifier, for images; ``hf:NAME``, a model of transformers or
            the folder of one, whose tokens or positions are averaged; or ``module:function``, a function without
            arguments that returns the model and a second function, which makes a batch of inputs for it of a list of
            texts, or of paths. Such a model returns the features, [B, D].
        kind: ``texts`` or ``images``, what the items are.

    Raises:
        ImportError: a library or the module is not installed.
        ValueError, TypeError: there is no such model, or the function returns something else.
    """
    source, mark, rest = name.partition(":")
    if not (mark and source and rest):
        raise ValueError(f"model must be {_FORMS}, got {name!r}")
    if source == "timm":
        if kind != IMAGES:
            raise ValueError(f"model must be one for texts, got {name!r}, which is for images: try hf:NAME")
        return _from_timm(rest)
    return _from_transformers(rest, kind) if source == "hf" else _from_function(source, rest)


def _from_timm(name: str) -> Encoder:
    timm = _library("timm", "timm")
    with _loading(f"timm:{name}"):
        model = timm.create_model(name, pretrained=True, num_classes=0)
        transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)

    def prepare(paths: Sequence[str]) -> Tensor:
        return torch.stack([transform(image) for image in _images(paths)])

    return Encoder(model, prepare)


def _from_transformers(name: str, kind: str) -> Encoder:
    transformers = _library("transformers", "transformers")
    with _loading(f"hf:{name}"):
        model = transformers.AutoModel.from_pretrained(name)
        if kind == TEXTS:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        else:
            processor = transformers.AutoImageProcessor.from_pretrained(name)

    def prepare(items: Sequence[str]) -> dict[str, Any]:
        if kind == TEXTS:
            return dict(tokenizer(list(items), padding=True, truncation=True, return_tensors="pt"))
        return dict(processor(_images(items), return_tensors="pt"))

    return Encoder(model, prepare, _TOKENS, "mean") if kind == TEXTS else Encoder(MeanState(model), prepare)


def _from_function(module: str, function: str) -> Encoder:
    try:
        make = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"model must name a module that can be imported from this folder, got {module!r}: {error}"
        ) from error
    if not callable(make):
        raise ValueError(f"model must name a function of {module}, got {function!r}")
    made = make()
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise TypeError(
            f"{module}:{function} must return a torch module, and a function that makes a batch of inputs for it of a "
            f"list of items, got {type(made).__name__}"
        )
    return Encoder(*made)


def _images(paths: Sequence[str]) -> list[Any]:
    image = _library("PIL.Image", "pillow")

    def read(path: str) -> Any:
        try:
            with image.open(path) as file:
                return file.convert("RGB")
        except OSError as error:
            raise ValueError(f"{path} must be an image: {error}") from error

    return [read(path) for path in paths]


def _library(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {distribution}: pip install {distribution} ({error})") from error


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Any error in the body means that a library cannot load a model."""
    try:
        yield
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"cannot load {name} ({first}): it must be on this machine, or its library must be able to download it"
        ) from error
