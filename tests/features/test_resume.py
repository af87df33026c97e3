"""Extraction that was interrupted or killed: what is done is kept, and what comes out is what would have."""

import json
import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lapal_ext import StorageError
from tests.features.files import BATCH, DATA, PLAIN, Counting, Interrupt, N, X, Y, batches, check, contents, run
from tests.fuzz.processes import forked, kill_at_step


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


class Killing(Dataset[tuple[Tensor, Tensor]]):
    """Ends the process that reads it with SIGKILL, behind a number of rows."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return X[row], Y[row]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed, and started by fork")


@needs_fork
def test_killed_behind_counted_rows(path: Path) -> None:
    """SIGKILL, again and again, until a process comes to its end: bit for bit what it would have been."""
    draw, kills = random.Random(0), 0
    while (status := forked(partial(run, path, Killing(draw.randrange(3 * BATCH))))) != 0:
        assert status == -signal.SIGKILL
        kills += 1
    model = Counting()
    check(run(path, Killing(0), model))
    assert model.rows == 0
    assert kills >= 2


@needs_fork
def test_killed_at_steps_that_are_counted(path: Path) -> None:
    """Before each file that is opened, moved or removed, one after the other: each process goes on from the last."""

    def killed(step: int) -> None:
        kill_at_step(step, path.parent)
        run(path)

    steps = 1
    while (status := forked(partial(killed, steps))) != 0:
        assert status == -signal.SIGKILL
        steps += 1
    check(run(path))
    assert steps > 2 * BATCH


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
