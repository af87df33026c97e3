"""Extraction that was interrupted or killed: what is done is kept, and what comes out is what would have."""

import json
import multiprocessing
import os
import random
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lapal_ext import StorageError
from tests.features.files import BATCH, DATA, PLAIN, Counting, Interrupt, N, X, Y, batches, check, contents, run


@pytest.fixture(params=["pool.npy", "pool.safetensors"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


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
