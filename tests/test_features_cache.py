"""Features kept in a file: read back, gone on with after a kill, and never taken for something else."""

import json
import math
import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset, WeightedRandomSampler

from lapal_ext import StorageError, select_batch
from lapal_ext.features import extract
from lapal_ext.features.extraction import ExtractedFeatures
from lapal_ext.posterior import LastLayerLaplace

N = 23
BATCH = 4


class Interrupt(BaseException):
    """Stands for what ends a process."""


class Counting(nn.Module):
    """A small network that counts the rows that it saw, and is interrupted behind some of them."""

    def __init__(self, seed: int = 0, *, slope: float = 0.1, stop: int = 10**9) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body, self.fc = nn.Linear(5, 6), nn.Linear(6, 3)
        self.act = nn.LeakyReLU(slope)
        self.rows, self.stop = 0, stop

    def forward(self, x: Tensor) -> Tensor:
        if self.rows >= self.stop:
            raise Interrupt
        self.rows += len(x)
        return self.fc(self.act(self.body(x)))


X = torch.linspace(-2, 2, N * 5).sin().view(N, 5)
Y = torch.arange(N) % 3
DATA = TensorDataset(X, Y)
PLAIN = extract(Counting(), DATA, batch_size=BATCH)


@pytest.fixture(params=["pool.npy", "pool.safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def run(path: Path, data: Any = DATA, model: Any = None, **options: Any) -> ExtractedFeatures:
    return extract(model or Counting(), data, path=path, **{"batch_size": BATCH, **options})


def check(result: ExtractedFeatures, expected: ExtractedFeatures = PLAIN) -> None:
    assert torch.equal(result.features, expected.features)
    assert torch.equal(result.targets, expected.targets)
    assert result.layer == expected.layer


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# What is written and read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_file_holds_what_was_extracted(path: Path, dtype: torch.dtype) -> None:
    if path.suffix == ".npy" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match=r"^path must be a \.safetensors file for torch\.bfloat16"):
            run(path, dtype=dtype)
        return
    model = Counting()
    expected = extract(model, DATA, batch_size=BATCH, dtype=dtype)
    check(run(path, dtype=dtype), expected)
    read = torch.from_numpy(np.load(path)) if path.suffix == ".npy" else load_file(path)["features"]
    assert torch.equal(read, expected.features)
    assert torch.equal(torch.from_numpy(np.load(f"{path}.targets.npy")), Y)
    names = [path.name, f"{path.name}.json", f"{path.name}.targets.npy"]
    assert sorted(contents(path.parent)) == names
    model.rows = 0
    check(run(path, model=model, dtype=dtype), expected)
    assert model.rows == 0


def test_a_file_without_labels(path: Path) -> None:
    for _ in range(2):
        assert run(path, X).targets is None
    assert not Path(f"{path}.targets.npy").exists()


def test_a_file_is_a_pool(path: Path) -> None:
    features = run(path).features
    posterior = LastLayerLaplace.fit_map(features, Y, 3)
    picks = select_batch(posterior, path, 4).indices
    assert torch.equal(picks, select_batch(posterior, PLAIN.features, 4).indices)
    features.zero_()  # a copy on write: the file stays
    check(run(path))


@pytest.mark.parametrize("layer", ["fc", None, "module"])
def test_the_same_layer_by_another_word(path: Path, layer: str | None) -> None:
    run(path, layer=None if layer == "fc" else "fc")
    model = Counting()
    check(run(path, model=model, layer=model.fc if layer == "module" else layer))


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    return iter(zip(X.split(5), Y.split(5), strict=True))


def test_an_iterable_is_counted_before_its_file_is_believed(path: Path) -> None:
    run(path, batches())
    model = Counting()
    check(run(path, batches(), model))
    assert model.rows == 0
    with pytest.raises(StorageError, match="holds 23 rows, and data have more"):
        run(path, [*batches(), (X[:1], Y[:1])])
    with pytest.raises(StorageError, match="holds 23 rows, and data have only 20"):
        run(path, list(batches())[:-1])
    check(run(path, batches()))


# Killed and resumed


@pytest.mark.parametrize("data", ["dataset", "loader", "batches"])
def test_rows_that_are_done_are_kept(path: Path, data: str) -> None:
    """Interrupted after each number of batches, and gone on with in batches of another size."""
    make = {"dataset": lambda: DATA, "loader": lambda: DataLoader(DATA, 5), "batches": batches}[data]
    size = BATCH if data == "dataset" else 5
    for stop in range(size, N, size):
        folder = path.parent / str(stop)
        folder.mkdir()
        with pytest.raises(Interrupt):
            run(folder / path.name, make(), Counting(stop=stop), layer="fc")
        assert json.loads((folder / f"{path.name}.json").read_text())["done"] == stop
        assert not (folder / path.name).exists()
        resumed = Counting()
        result = run(folder / path.name, DataLoader(DATA, 7) if data == "loader" else make(), resumed, batch_size=3)
        torch.testing.assert_close(result.features, PLAIN.features)
        assert torch.equal(result.targets, Y)
        assert N - stop <= resumed.rows <= N - stop + 6 * (data == "loader")


def test_stopped_between_any_two_steps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is moved, written or added is where a process may end; what was there before is what counts."""
    run(path)
    whole = contents(path.parent)
    steps = 0
    real = {name: getattr(Path, name) for name in ("replace", "write_text", "write_bytes")}

    def stop_at(number: int, folder: Path) -> bool:
        left = [number]

        def stopping(name: str) -> Any:
            def step(self: Path, *args: Any, **kwargs: Any) -> Any:
                if self.is_relative_to(folder):
                    left[0] -= 1
                    if left[0] == 0:
                        raise Interrupt
                return real[name](self, *args, **kwargs)

            return step

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(Path, name, stopping(name))
            try:
                run(folder / path.name)
            except Interrupt:
                return True
        return False

    while True:
        steps += 1
        folder = path.parent / str(steps)
        folder.mkdir()
        if not stop_at(steps, folder):
            break
        check(run(folder / path.name))
        assert contents(folder) == whole
    assert steps > 2 * N / BATCH


class Slow(Dataset[tuple[Tensor, Tensor]]):
    """Gives the moments of a kill somewhere to fall."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        time.sleep(0.004)
        return X[row], Y[row]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed, and started by fork")
def test_killed_at_random_moments(path: Path) -> None:
    """SIGKILL, again and again, until a process comes to its end: bit for bit what it would have been."""
    fork, draw, kills = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(40):
        process = fork.Process(target=run, args=(path, Slow()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads; the child computes in one
            process.start()
        process.join(draw.uniform(0.0, 0.06))
        process.kill()
        process.join()
        code = process.exitcode
        process.close()
        if code == 0:
            break
        kills += 1
    model = Counting()
    check(run(path, Slow(), model))
    assert model.rows < N
    assert kills >= 2
    print(f"survived {kills} kills")


def test_two_at_once_are_noticed(path: Path) -> None:
    """The one that comes second goes on behind the rows of the first, which sees it; what is whole stays whole."""

    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches()):
            if number == 2:
                check(run(path, batches()))
            yield batch

    with pytest.raises(StorageError, match=r"\.partial was changed meanwhile: let one process at a time extract"):
        run(path, interrupted())
    check(run(path, batches()))


# Something else


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"model": Counting(1)}, "another model"),
    "structure": ({"model": Counting(slope=0.2)}, "another model"),
    "layer": ({"layer": "body"}, "layer 'fc' and not 'body'"),
    "take": ({"layer": "fc", "take": "output"}, "take 'input' and not 'output'"),
    "autocast": ({"autocast": torch.bfloat16}, "autocast None and not 'torch.bfloat16'"),
    "dtype": ({"dtype": torch.float16}, "dtype 'torch.float32' and not 'torch.float16'"),
    "fewer rows": ({"data": TensorDataset(X[:-1], Y[:-1])}, "rows 23 and not 22"),
    "more rows": ({"data": TensorDataset(torch.cat([X, X]), torch.cat([Y, Y]))}, "rows 23 and not 46"),
    "unknown rows": ({"data": [(X, Y)]}, "rows 23 and not None"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("whole", [True, False])
def test_features_of_something_else_are_never_taken(path: Path, change: str, whole: bool) -> None:
    with nullcontext() if whole else pytest.raises(Interrupt):
        run(path, model=None if whole else Counting(stop=9), layer="fc")
    before = contents(path.parent)
    changed, message = CHANGES[change]
    with pytest.raises(StorageError, match=rf"holds features of something else \({message}\): choose another path"):
        run(path, **changed)
    assert contents(path.parent) == before
    check(run(path))


def test_a_model_is_known_again_in_another_process(tmp_path: Path) -> None:
    """Where a module prints a function, its address is part of what is printed, and another one each time."""

    class Printed(Counting):
        def extra_repr(self) -> str:
            return f"activation=<function f at {hex(id(self))}>"

    run(tmp_path / "x.npy", model=Printed())
    kept = Printed()  # at another address
    check(run(tmp_path / "x.npy", model=Printed()))
    assert kept.rows == 0


def test_a_foreign_file_is_never_written_over(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"exists, and no .*\.json says what it is of: choose another path"):
        run(path)
    assert contents(path.parent) == {path.name: b"precious"}


def test_a_stray_part_never_takes_the_place_of_what_is_whole(path: Path) -> None:
    run(path)
    for name in (path, Path(f"{path}.targets.npy")):
        name.with_name(f"{name.name}.partial").write_bytes(b"")
    check(run(path))


def test_deleting_the_features_begins_anew(path: Path) -> None:
    run(path)
    path.unlink()
    check(run(path))
    path.unlink()
    assert run(path, X).targets is None


@pytest.mark.parametrize("sampler", [RandomSampler(DATA), WeightedRandomSampler([1.0] * N, N)])
def test_rows_in_another_order_each_time_are_not_kept(path: Path, sampler: Any) -> None:
    for loader in (DataLoader(DATA, 4, sampler=sampler), DataLoader(DATA, None, sampler=sampler)):
        with pytest.raises(ValueError, match=r"^data must come in the same order each time to be kept in path: pass"):
            run(path, loader)
    assert contents(path.parent) == {}


# Damage


@pytest.mark.parametrize(
    ("name", "changed"),
    [("x.npy", "x.npy"), ("x.npy", "x.npy.targets.npy"), ("x.npy", "x.npy.json"), 2 * ("x.safetensors",)],
)
def test_damage_anywhere_is_noticed(tmp_path: Path, name: str, changed: str) -> None:
    """A bit of every byte is flipped, and the file is cut off at every fifth."""
    path, damaged, data = tmp_path / name, tmp_path / changed, TensorDataset(X[:3], Y[:3])
    run(path, data)
    whole = damaged.read_bytes()
    tried = 0
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        for content in (bytes(flipped), whole[:position])[: 1 + (position % 5 == 0)]:
            damaged.write_bytes(content)
            with pytest.raises(StorageError, match="damaged"):
                run(path, data)
            tried += 1
    damaged.write_bytes(whole + b" ")
    if damaged.suffix != ".json":  # a space more is the same journal
        with pytest.raises(StorageError, match="damaged"):
            run(path, data)
    assert tried > 300
    print(f"noticed {tried} damages")


@pytest.mark.parametrize("name", ["", ".targets.npy"])
def test_rows_that_were_damaged_while_nobody_ran(path: Path, name: str) -> None:
    with pytest.raises(Interrupt):
        run(path, model=Counting(stop=9), layer="fc")
    partial = Path(f"{path}{name}.partial")
    whole = partial.read_bytes()
    partial.write_bytes(whole + b"rows of the batch that was not finished")
    check(run(path))
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(Interrupt):
        run(path, model=Counting(stop=9), layer="fc")
    partial.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"\.partial is damaged: delete it to begin anew$"):
        run(path)


def test_a_journal_of_a_newer_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lapal_ext.features.cache._VERSION", 2)
        run(path)
    with pytest.raises(StorageError, match=r"has format version 2, this lapal_ext reads 1$"):
        run(path)


def test_a_row_that_is_not_finite_leaves_those_before_it(path: Path) -> None:
    broken = X.clone()
    broken[13, 0] = math.nan
    with pytest.raises(ValueError, match=r"from row 13 of data$"):
        run(path, TensorDataset(broken, Y))
    assert json.loads(Path(f"{path}.json").read_text())["done"] == 12
    model = Counting()
    check(run(path, model=model))
    assert model.rows == N - 12
