"""Extraction that was interrupted or killed: finished rows are kept, and the result is that of a run without a stop."""

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
def test_finished_rows_are_kept(path: Path, data: str) -> None:
    """Interrupted after each number of batches, and resumed in batches of another size."""
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


def test_a_run_that_stops_between_any_two_steps_is_resumed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may end before any file that it moves or writes; the next one completes the same files."""
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
    """Kills the process that reads it with SIGKILL, after a number of rows."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return X[row], Y[row]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork, and kills them")


@needs_fork
def test_runs_killed_after_counted_rows_are_resumed(path: Path) -> None:
    """One process after the other is killed until one finishes; the result has the same bits as without a kill.

    Each first reads all rows once for their checksum.
    """
    draw, kills = random.Random(0), 0
    while (status := forked(partial(run, path, Killing(N + draw.randrange(3 * BATCH))))) != 0:
        assert status == -signal.SIGKILL
        kills += 1
    model = Counting()
    check(run(path, Killing(N), model))  # the checksum of the data reads all of so few
    assert model.rows == 0
    assert kills >= 2


@needs_fork
def test_runs_killed_at_counted_steps_are_resumed(path: Path) -> None:
    """A step opens, moves or removes a file. Each process resumes the one before, and is killed one step later."""

    def killed(step: int) -> None:
        kill_at_step(step, path.parent)
        run(path)

    steps = 1
    while (status := forked(partial(killed, steps))) != 0:
        assert status == -signal.SIGKILL
        steps += 1
    check(run(path))
    assert steps > 2 * BATCH


def test_two_runs_on_one_file_are_noticed(path: Path) -> None:
    """The second run resumes after the rows of the first, which notices it; the complete file stays valid."""

    def interrupted() -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches()):
            if number == 2:
                check(run(path, batches()))
            yield batch

    with pytest.raises(StorageError, match=r"\.partial was changed meanwhile: let one process at a time extract"):
        run(path, interrupted())
    check(run(path, batches()))
