"""A file of features is not continued with other data, in whatever form the data are."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lapal_ext import StorageError
from lapal_ext.features.data_checksum import DataChecksum
from tests.features.files import PLAIN, Counting, Interrupt, N, X, Y, check, contents, run

ORDER = torch.randperm(N, generator=torch.Generator().manual_seed(0))
OTHER = r"holds features of other data, or of these in another order: pass the data that it was begun with"


class Items(Dataset[Any]):
    """Rows of tensors by number, as a user's own data set gives them; ``spoil`` changes an item."""

    def __init__(self, x: Tensor, y: Tensor, spoil: Callable[[int, Tensor], Tensor] = lambda _, x: x) -> None:
        self.x, self.y, self.spoil, self.reads = x, y, spoil, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        self.reads += 1
        return self.spoil(number, self.x[number]), int(self.y[number])


class Stream(IterableDataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(self.x, self.y, strict=True))


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tensor": lambda x, _: x,
    "a TensorDataset": TensorDataset,
    "a Dataset": Items,
    "a Subset": lambda x, y: Subset(Items(x, y), range(len(x))),
    "a loader": lambda x, y: DataLoader(TensorDataset(x, y), 5),
    "a loader of items": lambda x, y: DataLoader(Items(x, y), 5),
    "a loader with processes": lambda x, y: DataLoader(Items(x, y), 5, num_workers=1),
    "a list of batches": lambda x, y: list(zip(x.split(5), y.split(5), strict=True)),
}


def one_row(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone()
    x[3] += 1e-3
    return x, y


CHANGES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "another order": lambda x, y: (x[ORDER], y[ORDER]),
    "reversed": lambda x, y: (x.flip(0), y.flip(0)),
    "one value": one_row,
    "other data": lambda x, y: (x + 1, y),
    "other labels": lambda x, y: (x, (y + 1) % 3),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", FORMS)
def test_other_data_are_refused(tmp_path: Path, form: str, change: str, whole: bool) -> None:
    if form == "a tensor" and change == "other labels":
        pytest.skip("a tensor has no labels")
    path, make = tmp_path / "pool.npy", FORMS[form]
    if whole:
        expected = run(path, make(X, Y), layer="fc")
    else:
        with pytest.raises(Interrupt):
            run(path, make(X, Y), Counting(stop=9), layer="fc")
    before = contents(tmp_path)
    model = Counting()
    with pytest.raises(StorageError, match=OTHER):
        run(path, make(*CHANGES[change](X, Y)), model, layer="fc")
    assert model.rows == 0
    assert contents(tmp_path) == before
    again = run(path, make(X.clone(), Y.clone()), layer="fc")
    if whole:
        assert torch.equal(again.features, expected.features)
    else:
        torch.testing.assert_close(again.features, PLAIN.features)


@pytest.mark.parametrize("size", [1, 31, 32, 33, 500])
def test_long_data_are_read_in_part(size: int) -> None:
    x, y = torch.arange(size * 2.0).view(size, 2), torch.zeros(size, dtype=torch.int64)
    items = Items(x, y)
    value = DataChecksum(items).value
    assert items.reads == min(size, 32)
    assert DataChecksum(Items(x.clone(), y)).is_of(value, size)
    assert size == 1 or not DataChecksum(Items(x.flip(0), y)).is_of(value, size)
    assert DataChecksum(Items(torch.cat([x[:-1], x[-1:] + 1]), y)).is_of(value, size - 1)


def test_rows_that_are_not_in_the_file_yet_may_change(tmp_path: Path) -> None:
    """A row that stopped the extraction is mended, and the extraction goes on."""
    with pytest.raises(ValueError, match="NaN or infinity from row 15 of data"):
        run(tmp_path / "pool.npy", Items(X, Y, lambda number, x: x / 0 if number == 15 else x))
    check(run(tmp_path / "pool.npy", Items(X, Y)))


def test_items_drawn_anew_at_every_read_are_not_compared(tmp_path: Path) -> None:
    """As with random augmentations; nor is anything taken from the generators that draw them."""

    def draw(_: int, x: Tensor) -> Tensor:
        return x + torch.rand(()) + random.random() + float(np.random.rand())  # noqa: NPY002

    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = [draw(0, torch.zeros(())) for _ in range(N)]
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    got = run(tmp_path / "pool.npy", Items(torch.zeros(N, 5), Y, draw), Spy())
    assert [float(row) for row in got.features[:, 0]] == pytest.approx([float(value) for value in expected])
    run(tmp_path / "pool.npy", Items(torch.zeros(N, 5), Y, draw), Spy())
    assert len(contents(tmp_path)) == 3


class Spy(torch.nn.Module):
    """A head on the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.utils.skip_init(torch.nn.Linear, 5, 2)
        torch.nn.init.ones_(self.fc.weight)
        torch.nn.init.ones_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_an_item_that_cannot_be_read_is_left_to_the_extraction(tmp_path: Path) -> None:
    def spoil(number: int, x: Tensor) -> Tensor:
        if number == N - 1:
            raise OSError("a damaged image")
        return x

    with pytest.raises(OSError, match="a damaged image"):
        run(tmp_path / "pool.npy", Items(X, Y, spoil))
    model = Counting()
    check(run(tmp_path / "pool.npy", Items(X, Y), model))
    assert model.rows < N  # the rows before it were kept


@pytest.mark.parametrize(
    "data",
    [Stream(X, Y), DataLoader(Stream(X, Y), 5), iter([X]), (x for x in X.split(5)), [object()], {"a": object()}],
    ids=["stream", "loader of a stream", "iterator", "generator", "objects", "mapping of objects"],
)
def test_data_that_cannot_be_compared(data: Any) -> None:
    assert DataChecksum(data).value is None
    assert DataChecksum(data).is_of("another", 3)
    if isinstance(data, Iterator):
        assert len(list(data)) > 0  # nothing was read


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(6), np.arange(6)[::-1].copy()),
        ([{"ids": torch.arange(6)}], [{"ids": torch.arange(6).flip(0)}]),
        ([{"text": "a", "label": 1}], [{"text": "b", "label": 1}]),
        ([(b"x", "name", None, 1.0, True)], [(b"x", "name", None, 1.0, False)]),
        ([np.float32(1)], [np.float32(2)]),
        ([1], [1.0]),
        ([torch.zeros(2, dtype=torch.bfloat16)], [torch.ones(2, dtype=torch.bfloat16)]),
        ([[torch.zeros(2)], []], [[], [torch.zeros(2)]]),
    ],
)
def test_other_kinds_of_items(one: Any, other: Any) -> None:
    value = DataChecksum(one).value
    assert value is not None
    assert DataChecksum(one).is_of(value, 6)
    assert not DataChecksum(other).is_of(value, 6)


def test_images() -> None:
    image = pytest.importorskip("PIL.Image")
    pictures = [image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (1, 2)]
    assert not DataChecksum(pictures[::-1]).is_of(DataChecksum(pictures).value, 2)
