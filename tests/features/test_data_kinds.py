"""Data as people have them: each kind gives the same rows in the same order, or an error says what to pass."""

import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lapal_ext import StorageError
from lapal_ext.features import extract
from tests.eighths import Eighths
from tests.features.examples import INPUT_IDS, MASK, MODEL, X, Y, expected
from tests.features.models import TinyTransformer, seeded

N = len(X)
NAMES = tuple(f"{row}.png" for row in range(N))
TEXT_MODEL: Any = seeded(TinyTransformer)
TEXT_LABELS = torch.arange(10) % 3


class Rows:
    """A map-style dataset that is not torch's."""

    def __init__(self, item: Callable[[int], Any], rows: int = N) -> None:
        self.item, self.rows = item, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < self.rows:
            raise IndexError(row)
        return self.item(row)


class Table(Rows):
    """As ``datasets.Dataset``: items are dicts of plain values, and iterating gives items."""

    def __getitems__(self, rows: list[int]) -> list[Any]:
        return [self[row] for row in rows]

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))


class TorchRows(Rows, Dataset[Any]):
    pass


class Frame(Rows):
    """As those of pandas, whose items are columns."""

    def __init__(self) -> None:
        super().__init__(lambda row: X[row])

    def to_numpy(self) -> Any:
        return X.numpy()


class Encoding(UserDict[str, Any]):
    """As ``transformers.BatchEncoding``."""


class Picture:
    """As those of PIL, whose values NumPy reads as [H, W, channels]."""

    __module__ = "PIL.Image"

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.zeros((8, 8, 1), dtype=np.uint8)


def text(row: int) -> dict[str, Any]:
    return {
        "text": f"text {row}",
        "idx": row,
        "input_ids": INPUT_IDS[row].tolist(),
        "attention_mask": MASK[row].tolist(),
        "label": row % 3,
    }


IMAGES: dict[str, tuple[Callable[[], Any], bool, Any]] = {
    "an array": (X.numpy, False, None),
    "an array that is read-only": (lambda: np.broadcast_to(X.numpy(), X.shape), False, None),
    "batches of arrays": (lambda: [part.numpy() for part in X.split(7)], False, None),
    "pairs of arrays": (lambda: [(X[:20].numpy(), Y[:20].numpy()), (X[20:].numpy(), Y[20:].numpy())], True, None),
    "inputs and labels": (lambda: (X, Y), True, None),
    "inputs and labels in arrays": (lambda: (X.numpy(), Y.numpy()), True, None),
    "map-style": (lambda: Rows(lambda row: (X[row], int(Y[row]))), True, None),
    "map-style arrays": (lambda: Rows(lambda row: X[row].numpy()), False, None),
    "a table": (
        lambda: Table(lambda row: {"images": X[row].tolist(), "label": int(Y[row]), "file": NAMES[row]}),
        True,
        None,
    ),
    "a list of items": (lambda: [(x, int(y)) for x, y in zip(X, Y, strict=True)], True, None),
    "a list of items with 0-d labels": (lambda: list(zip(X, Y, strict=True)), True, None),
    "a list of arrays and labels": (lambda: list(zip(X.numpy(), Y.numpy(), strict=True)), True, None),
    "a generator of items": (lambda: iter([(x, int(y)) for x, y in zip(X, Y, strict=True)]), True, None),
    "a list of dicts": (lambda: [{"images": x, "labels": y} for x, y in zip(X, Y, strict=True)], True, None),
    "a dict at the top": (lambda: {"images": X, "labels": Y, "file": list(NAMES)}, True, None),
    "a dict of arrays": (lambda: {"images": X.numpy(), "label": Y.numpy()}, True, None),
    "indices": (lambda: TensorDataset(X, Y, torch.arange(N) + 100), True, torch.arange(N) + 100),
    "indices in a loader": (lambda: DataLoader(TensorDataset(X, Y, torch.arange(N)), 7), True, torch.arange(N)),
    "names": (lambda: TorchRows(lambda row: (X[row], int(Y[row]), NAMES[row])), True, NAMES),
    "names in a loader": (lambda: DataLoader(TorchRows(lambda row: (X[row], Y[row], NAMES[row])), 7), True, NAMES),
    "names in items": (lambda: [(X[row], int(Y[row]), NAMES[row]) for row in range(N)], True, NAMES),
    "names in a batch": (lambda: [(X, Y, list(NAMES))], True, NAMES),
    "a loader in order by its own sampler": (
        lambda: DataLoader(TensorDataset(X), batch_sampler=BatchSampler(SequentialSampler(X), 9, False)),
        False,
        None,
    ),
    "an iterator of a loader": (lambda: iter(DataLoader(TensorDataset(X, Y), 9)), True, None),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str) -> None:
    make, labelled, ids = IMAGES[name]
    result = extract(MODEL, make(), batch_size=16)
    torch.testing.assert_close(result.features, expected())
    assert (result.targets is not None) is labelled
    assert result.targets is None or torch.equal(result.targets, Y)
    assert torch.equal(result.ids, ids) if isinstance(ids, Tensor) else result.ids == ids


TEXTS: dict[str, Callable[[], Any]] = {
    "an encoding at the top": lambda: Encoding(input_ids=INPUT_IDS, attention_mask=MASK, labels=TEXT_LABELS),
    "lists at the top": lambda: {
        "input_ids": INPUT_IDS.tolist(),
        "attention_mask": MASK.tolist(),
        "label": TEXT_LABELS,
    },
    "a table": lambda: Table(text, 10),
    "a stream of a table": lambda: iter(Table(text, 10)),
    "a list of items": lambda: [text(row) for row in range(10)],
    "items without labels": lambda: [{k: v for k, v in text(row).items() if k != "label"} for row in range(10)],
    "items of tensors": lambda: [{"input_ids": INPUT_IDS[row], "attention_mask": MASK[row]} for row in range(10)],
    "further keys": lambda: [
        {"input_ids": INPUT_IDS, "attention_mask": MASK, "idx": torch.arange(10), "t": ["x"] * 10}
    ],
    "batches of encodings": lambda: [
        Encoding(input_ids=i, attention_mask=m) for i, m in zip(INPUT_IDS.split(4), MASK.split(4), strict=True)
    ],
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    result = extract(TEXT_MODEL, TEXTS[name](), batch_size=4)
    torch.testing.assert_close(result.features, TEXT_MODEL.pooled(INPUT_IDS, MASK).detach())
    assert result.targets is None or torch.equal(result.targets, TEXT_LABELS)
    assert (result.targets is None) is (
        name in {"items without labels", "items of tensors", "further keys", "batches of encodings"}
    )


def test_vectors_are_items() -> None:
    model, x = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)), X.flatten(1)[:, :8]
    plain = model[1](model[0](x)).detach()
    for data in (list(x), iter(x.numpy()), list(zip(x, Y, strict=True)), DataLoader(TensorDataset(x, Y), None)):
        torch.testing.assert_close(extract(model, data, batch_size=16).features, plain)


class OneDict(nn.Module):
    """As models of sentence-transformers and of multimodal data: one dict of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, "logits": self.fc(batch["a"] + batch["b"])}


def test_a_model_that_takes_one_dict() -> None:
    a, b = torch.arange(15.0).view(5, 3), torch.ones(5, 3)
    model = OneDict()
    for data in (
        {"a": a, "b": b},
        [{"a": a, "b": b}],
        [{"a": x, "b": y, "label": 1} for x, y in zip(a, b, strict=True)],
    ):
        assert torch.equal(extract(model, data, batch_size=2).features, a + b)


def test_a_model_that_takes_one_dict_and_options() -> None:
    """As ``SentenceTransformer``, whose forward has further keywords."""

    class WithOptions(OneDict):
        def forward(self, batch: dict[str, Any], **options: Any) -> dict[str, Any]:
            assert not options
            return super().forward(batch)

    a, b = torch.arange(15.0).view(5, 3), torch.ones(5, 3)
    assert torch.equal(extract(WithOptions(), {"a": a, "b": b}).features, a + b)


class Strange(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([3, 1, 2])

    def __len__(self) -> int:
        return 3


class Wrapped:
    """As loaders of other libraries, which hold one of torch's."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.dataset, self.batch_sampler = loader, loader.dataset, loader.batch_sampler

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


@pytest.mark.parametrize("kept", [True, False])
def test_a_loader_in_another_order_is_refused(kept: bool, tmp_path: Any) -> None:
    data = TensorDataset(X, Y)
    loaders: list[Any] = [
        DataLoader(data, 7, sampler=s)
        for s in (RandomSampler(data), SubsetRandomSampler(range(9)), WeightedRandomSampler([1.0] * N, N), Strange())
    ]
    loaders += [DataLoader(data, 7, shuffle=True), DataLoader(data, batch_sampler=BatchSampler(Strange(), 2, False))]
    loaders += [Wrapped(loader) for loader in loaders]
    for loader in loaders:
        with pytest.raises(
            ValueError, match=r"^data must come in the .*order.*: pass the Dataset itself, or a DataLoader"
        ):
            extract(MODEL, loader, path=tmp_path / "x.npy" if kept else None)
    assert not any(tmp_path.iterdir())


def test_a_loader_that_is_iterated_keeps_its_order() -> None:
    loader = DataLoader(
        TensorDataset(X, Y, torch.arange(N)), 7, shuffle=True, generator=torch.Generator().manual_seed(0)
    )
    result = extract(MODEL, iter(loader))
    assert isinstance(result.ids, Tensor)
    assert not torch.equal(result.ids, torch.arange(N))
    torch.testing.assert_close(result.features, expected()[result.ids])
    assert torch.equal(result.targets, Y[result.ids])


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "text labels": ([(X, ["cat"] * N)], TypeError, "labels .* got list of str: number the classes first"),
    "text labels of items": ([(x, "cat") for x in X], TypeError, "labels .* got list of str: number the classes first"),
    "a data frame": (Frame(), TypeError, r"data must be .*, got Frame: pass data\.to_numpy\("),
    "arrays in float64": (
        X.double().numpy(),
        TypeError,
        r"data must be torch\.float32 like the parameters of model, got t",
    ),
    "tensors in float64": (
        [X.double()],
        TypeError,
        r"data must be torch\.float32 like the parameters of model, got torch",
    ),
    "an array of objects": (np.array([None, 1]), TypeError, "inputs of the batch .* must hold numbers"),
    "images of other sizes": (
        [(X[0], 1), (X[1, :, 1:], 1)],
        ValueError,
        r"data must hold items of one shape, got \(1, 8, 8\)",
    ),
    "items that are no tensors": (Rows(lambda _: (object(), 1)), TypeError, "data must hold tensors, .*transform"),
    "two inputs": (TensorDataset(X, X), ValueError, r"labels .* \(a model that takes several inputs needs a dict\)"),
    "four parts": ([(X, Y, Y, Y)], ValueError, r"the batch .* got 4 parts: pass a dict for a model that takes several"),
    "ids that are floats": ([(X, Y, Y.float())], ValueError, "ids in the batch .* must be 50 integers or texts"),
    "too few ids": ([(X, Y, NAMES[:3])], ValueError, "ids in the batch .* must be 50 integers or texts"),
    "ids in some": ([(X, Y, Y), (X, Y)], ValueError, "data must have ids of one kind in all batches or in none"),
    "columns of other lengths": (
        {"images": X, "labels": Y[:9]},
        ValueError,
        "data must hold the same number of rows under",
    ),
    "a dict of datasets": (
        {"train": Rows(text), "test": Rows(text)},
        TypeError,
        "data .* of a dict of datasets pass one",
    ),
    "images without a transform": (
        Rows(lambda _: (Picture(), 1)),
        TypeError,
        "data must hold .*, got Picture: give",
    ),
    "texts alone": (
        {"text": ["a", "b"]},
        ValueError,
        "the batch .* must hold tensors .*, got text: texts need",
    ),
    "another key": ({"pixels": X}, TypeError, "data must be a tensor, or have a key 'images'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_what_to_pass(name: str) -> None:
    data, error, message = REFUSED[name]
    with pytest.raises(error, match=f"(?s)^{message}"):
        extract(MODEL, data)


def test_texts_that_cannot_be_read() -> None:
    ragged = [{"input_ids": [1] * (2 + row), "attention_mask": [1] * (2 + row)} for row in range(3)]
    with pytest.raises(
        ValueError, match=r"^data must hold items of one shape, got \(2,\) and \(3,\): pad .*DataCollator"
    ):
        extract(TEXT_MODEL, ragged)
    with pytest.raises(ValueError, match=r"^data must hold lists of one length, got a ragged one: pass padding=True"):
        extract(TEXT_MODEL, {"input_ids": [[1, 2], [3]]})
    with pytest.raises(
        TypeError, match=r"^data must hold 'attention_mask', which forward of model requires, got 'input_"
    ):
        extract(TEXT_MODEL, {"input_ids": INPUT_IDS})


def test_ids_are_not_kept_in_a_file(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"^path must be None for data with ids"):
        extract(MODEL, TensorDataset(X, Y, torch.arange(N)), path=tmp_path / "x.npy")


def test_kinds_of_models_that_cannot_be_read() -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"^model must have shapes, got a lazy '1.weight': run it on one batch before"):
        extract(lazy, X)
    assert isinstance(lazy[1], nn.LazyLinear)
    exported = torch.export.export(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), (X,))
    with pytest.raises(
        TypeError, match=r"^model must be a torch.nn.Module, got ExportedProgram, an exported program has"
    ):
        extract(exported, X)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^model must have an evaluation mode, .* pass the model that was exported"):
        extract(exported.module(), X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        scripted = (torch.jit.trace(network, X), torch.jit.script(network))
    for model in scripted:
        with pytest.raises(ValueError, match=r"^layer must be named, since model runs no torch\.nn\.Linear"):
            extract(model, X)
        with pytest.raises(TypeError, match=r"^layer must take hooks, got '1' of .*: pass the model that was scr"):
            extract(model, X, "1")
        assert torch.equal(extract(model, X, take="output").features, network(X).detach())


def test_a_tensor_subclass_in_the_model(tmp_path: Any) -> None:
    """As weights of torchao in eight bits: features are right, and the file knows another model."""

    def make(shift: int) -> nn.Module:
        model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)))
        for number in (1, 3):
            codes = (model[number].weight * 8).round().detach().to(torch.int8) + shift
            model[number].weight = nn.Parameter(Eighths(codes), requires_grad=False)
        return model

    path, model = tmp_path / "x.npy", make(0)
    result = extract(model, X, path=path)
    plain = (X.flatten(1) @ model[1].weight.dequantize().T + model[1].bias).tanh().detach()
    torch.testing.assert_close(result.features, plain)
    assert result.layer == "3"
    assert torch.equal(extract(make(0), X, path=path).features, result.features)
    with pytest.raises(StorageError, match="holds features of something else"):
        extract(make(1), X, path=path)
