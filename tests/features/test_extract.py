"""``extract``: the data that it accepts, the features that it returns, and errors for bad arguments."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import rich.progress
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.features import extract
from tests.features.examples import IMAGES, INPUT_IDS, LABELS, MASK, MODEL, X, Y, expected
from tests.features.models import TinyTransformer, seeded, trained_cnn


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(X, Y, strict=True))


class Dicts(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"input_ids": INPUT_IDS[row], "attention_mask": MASK[row], "labels": torch.tensor(row % 3)}


# Kinds of data

DATA = {
    "tensor": (lambda: X, False),
    "dataset": (lambda: TensorDataset(X, Y), True),
    "dataset without labels": (lambda: TensorDataset(X), False),
    "list of pairs": (lambda: [(x, y) for x, y in zip(X.split(13), Y.split(13), strict=True)], True),
    "generator of tensors": (lambda: iter(X.split(13)), False),
    "loader": (lambda: DataLoader(TensorDataset(X, Y), 13), True),
    "loader that drops nothing": (lambda: DataLoader(TensorDataset(X, Y), 25, drop_last=True), True),
    "stream": (Stream, True),
    "loader of a stream": (lambda: DataLoader(Stream(), 7), True),
    "loader of single batches": (lambda: DataLoader(TensorDataset(X[:, None], Y[:, None]), None), True),
    "small integers": (lambda: [(X, Y.to(torch.uint8))], True),
}


@pytest.mark.parametrize("name", DATA)
def test_every_kind_of_data_gives_the_same_features(name: str) -> None:
    make, labelled = DATA[name]
    result = extract(MODEL, make(), batch_size=16)
    torch.testing.assert_close(result.features, expected())
    assert result.layer == "fc"
    assert not result.features.requires_grad
    assert (result.targets is not None) is labelled
    if result.targets is not None:
        assert result.targets.dtype == torch.int64
        assert torch.equal(result.targets, Y)


@pytest.mark.parametrize(
    "data",
    [
        Dicts(),
        DataLoader(Dicts(), 3),
        [{"input_ids": INPUT_IDS, "attention_mask": MASK, "label": torch.arange(10) % 3}],
        [({"input_ids": INPUT_IDS, "attention_mask": MASK}, torch.arange(10) % 3)],
    ],
    ids=["dataset", "loader", "label", "pair"],
)
def test_a_model_of_transformers(data: Any) -> None:
    model: Any = seeded(TinyTransformer)
    result = extract(model, data, batch_size=4)
    torch.testing.assert_close(result.features, model.pooled(INPUT_IDS, MASK).detach())
    assert result.layer == "classifier"
    assert torch.equal(result.targets, torch.arange(10) % 3)


def test_the_number_of_rows_is_that_of_the_batches() -> None:
    result = extract(MODEL, DataLoader(TensorDataset(X, Y), 13, drop_last=True))
    torch.testing.assert_close(result.features, expected()[:39])
    assert torch.equal(result.targets, Y[:39])
    with pytest.raises(ValueError, match=r"^data must give as many rows as its length, 50, got 29$"):
        extract(MODEL, DataLoader(TensorDataset(X, Y), 7, collate_fn=lambda items: default_collate(items[:4])))


def test_nothing_is_drawn_from_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    extract(MODEL, TensorDataset(X, Y))
    extract(MODEL, Stream())
    assert torch.equal(torch.random.get_rng_state(), before)


# The returned features


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_features_are_kept_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    result = extract(MODEL, X, dtype=dtype)
    assert result.features.dtype == dtype
    torch.testing.assert_close(result.features, expected().to(dtype), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
def test_autocast_is_what_the_argument_says(autocast: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    handle = MODEL.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    mixed = extract(MODEL, X, "fc", autocast=autocast).features
    with torch.autocast("cpu", dtype=autocast):
        plain = extract(MODEL, X, "fc").features
    handle.remove()
    assert seen == [autocast, torch.float32]  # without the argument autocast is off, even within torch.autocast
    assert mixed.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(plain, expected())
    torch.testing.assert_close(mixed, plain, rtol=0.02, atol=0.02)
    assert not torch.equal(mixed, plain)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_named(value: float) -> None:
    broken = X.flatten(1).clone()
    broken[37, 5] = value
    with pytest.raises(ValueError, match=r"^features must be finite, got NaN or infinity from row 37 of data$"):
        extract(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3)), broken, batch_size=16)


def test_a_row_beyond_the_range_of_half_precision_is_named() -> None:
    large = X.flatten(1).clone()
    large[20, 3] = 1e6
    model = nn.Sequential(nn.Linear(64, 3))
    with pytest.raises(
        ValueError, match=r"^dtype must hold the features, row 20 of data exceeds the range of torch.fl"
    ):
        extract(model, large, batch_size=16, dtype=torch.float16)
    assert bool(extract(model, large, dtype=torch.bfloat16).features.isfinite().all())


def test_the_progress_bar_counts_rows_and_changes_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    advances: list[int] = []
    monkeypatch.setattr(rich.progress.Progress, "advance", lambda _, _task, rows: advances.append(rows))
    quiet = extract(MODEL, X, batch_size=20).features
    assert torch.equal(extract(MODEL, X, batch_size=20, progress=True).features, quiet)
    assert torch.equal(extract(MODEL, iter(X.split(20)), progress=True).features, quiet)
    assert advances == 2 * [0, 20, 20, 10]


# Bad arguments


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model": lambda x: x}, TypeError, r"model must be a torch\.nn\.Module, got function"),
        ({"data": None}, TypeError, r"data must be a tensor, a Dataset, a DataLoader or an iterable .*, got NoneType"),
        ({"data": "files"}, TypeError, r"data must be a tensor, .*, got str"),
        ({"data": {"x": X}}, TypeError, r"data must be a tensor, or have a key 'images' .*, got dict with 'x'$"),
        ({"data": X[0, 0, 0, 0]}, ValueError, r"data must have shape \(N, \.\.\.\), one input per row, got \(\)"),
        ({"data": X[:0]}, ValueError, r"data must have at least one row, got none"),
        ({"data": []}, ValueError, r"data must have at least one row, got none"),
        ({"data": [{1}]}, TypeError, r"the batch of data from row 0 on must be a tensor, .*, got set"),
        ({"data": [X, (X, Y, Y, Y)]}, ValueError, r"the batch of data from row 50 on must be inputs, .*, got 4 parts"),
        ({"data": [{"labels": Y}]}, ValueError, r"the batch of data from row 0 on must hold tensors .*, got nothing"),
        ({"data": [X[0, 0, 0, 0]]}, ValueError, r"the batch of data from row 0 on must have inputs of shape \(B, "),
        (
            {"data": [(X, ["a"] * 50)]},
            TypeError,
            r"labels in the batch of data from row 0 on must be .*, got list of str: number the classes",
        ),
        (
            {"data": [(X, Y.float())]},
            ValueError,
            r"labels in the batch .* integers of shape \(50,\), got torch\.float32",
        ),
        ({"data": [(X, Y[:9])]}, ValueError, r"labels in the batch .* integers of shape \(50,\), .* of shape \(9,\)"),
        (
            {"data": [(X, Y), X]},
            ValueError,
            r"data must have labels in all batches or in none, which changes at row 50",
        ),
        (
            {"data": [X, (X, Y)]},
            ValueError,
            r"data must have labels in all batches or in none, which changes at row 50",
        ),
        ({"batch_size": 0}, ValueError, r"batch_size must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, r"batch_size must be an integer, got float"),
        ({"device": "bogus"}, ValueError, r"device must be available, got 'bogus'"),
        ({"device": "meta"}, ValueError, r"device must hold values, got 'meta'"),
        ({"autocast": torch.float32}, ValueError, r"autocast must be torch\.bfloat16, torch\.float16 or None, got"),
        ({"autocast": True}, ValueError, r"autocast must be torch\.bfloat16, torch\.float16 or None, got True"),
        (
            {"dtype": torch.int8},
            TypeError,
            r"dtype must be torch\.float32, float64, bfloat16 or float16, got torch\.int",
        ),
        ({"progress": 1}, TypeError, r"progress must be True or False, got int"),
        ({"path": 3}, TypeError, r"path must be a str or an os\.PathLike, got int"),
        ({"path": "x.npz"}, ValueError, r"path must be a \.npy or \.safetensors file, got x\.npz"),
        ({"path": "x.npy", "dtype": torch.bfloat16}, ValueError, r"path must be a \.safetensors file for torch\.bfl"),
        ({"path": "absent/x.npy"}, FileNotFoundError, r"path must lie in an existing folder, got absent/x\.npy"),
    ],
)
def test_a_wrong_argument_is_named_in_the_error(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        extract(**{"model": MODEL, "data": X, **changed})
    assert type(caught.value) is error


def test_from_a_backbone_to_a_batch() -> None:
    """A CNN trained on few digits: the posterior has the logits of its last layer, and an update improves accuracy."""
    train, pool, test = (slice(0, 200), slice(200, 1200), slice(1200, None))
    model = trained_cnn(IMAGES[train], LABELS[train])
    labelled = extract(model, TensorDataset(IMAGES[train], LABELS[train]))
    features = extract(model, IMAGES[pool]).features
    points = extract(model, TensorDataset(IMAGES[test], LABELS[test]))
    with torch.no_grad():
        logits = model.eval()(IMAGES[test])
    posterior = LastLayerLaplace.from_linear(model.fc, labelled.features, 10.0, standardize=True)
    torch.testing.assert_close(posterior.predict_logits(points.features), logits, rtol=1e-4, atol=1e-4)
    before = (logits.argmax(1) == LABELS[test]).float().mean()
    batch = select_batch(posterior, features, batch_size=60)
    posterior.update(features[batch.indices], LABELS[pool][batch.indices])
    after = (posterior.predict_proba(points.features).argmax(1) == points.targets).float().mean()
    assert before > 0.8
    assert after > before + 0.02


def test_print_says_sizes_and_layer() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    shown = repr(extract(model, torch.randn(9, 5)))
    assert shown == "ExtractedFeatures(9 rows of 7 features in float32, no labels, layer '2')"
