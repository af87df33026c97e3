"""``torchrun … -m lapal_ext select`` writes the same label file as one process, byte for byte."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lapal_ext.cli import _parser, main
from lapal_ext.cli.select import torchrun as processes
from lapal_ext.cli.select.start import Start
from lapal_ext.pool.sharding import Ranks
from tests.cli.select.conftest import data  # noqa: F401 a fixture
from tests.cli.select.problem import NAMES, ROWS, fill, lines, select
from tests.fuzz.processes import HANGS

FILES = ["--features", "train.npy", "--labels", "labels.npy", "--classes", "names.txt"]


def torchrun(pool: str, out: str | None, *options: str) -> subprocess.CompletedProcess[str]:
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "lapal_ext", "select"]
    return subprocess.run(
        [sys.executable, *command, "--pool", pool, *FILES, *([] if out is None else ["--out", out]), *options],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )


@pytest.mark.usefixtures("data")
def test_several_processes_write_the_label_file_of_one() -> None:
    """Twice, with answers in between: first from one pool file per rank, then from one common file."""
    pool = np.load("pool.npy")
    for rank, rows in enumerate((slice(0, 30), slice(30, 30), slice(30, ROWS))):
        np.save(f"part{rank}.npy", pool[rows])
    assert select("--number", 5) == 0
    done = torchrun("part{rank}.npy", "shared.csv", "--number", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Rows chosen: 5") == 1
    assert Path("shared.csv.pool.json").read_bytes() == Path("out.csv.pool.json").read_bytes()
    assert Path("shared.csv").read_bytes() == Path("out.csv").read_bytes()

    fill(*(NAMES[int(line["row"]) % 3] for line in lines()[:3]), "skip")
    Path("shared.csv").write_bytes(Path("out.csv").read_bytes())
    assert select("--number", 5, "--more") == 0
    done = torchrun("pool.npy", "shared.csv", "--number", "5", "--more")
    assert done.returncode == 0, done.stderr
    assert Path("shared.csv").read_bytes() == Path("out.csv").read_bytes()
    assert len(lines()) == 10

    np.save("pool.npy", pool[::-1].copy())
    done = torchrun("pool.npy", "shared.csv", "--number", "5")
    assert done.returncode != 0
    assert "shared.csv was begun with another pool: --pool has the same rows in another order" in done.stderr
    assert Path("shared.csv").read_bytes() == Path("out.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_several_processes_write_the_files_of_several_annotators() -> None:
    """The second run gives common rows to an annotator who lacks them, and records ids."""
    Path("ids.txt").write_text("".join(f"n{row}\n" for row in range(ROWS)))
    common = ["--ids", "ids.txt", "--number", "5", "--overlap", "2"]
    files = ["anna.csv", "bert.csv"]
    written = []
    for number in range(2):
        Path("bert.csv").unlink(missing_ok=True)
        assert main(["select", "--pool", "pool.npy", *FILES, "--annotators", *files, *common]) == 0
        written.append([Path(name).read_bytes() for file in files for name in (file, f"{file}.pool.json")])
        assert len(lines("bert.csv")) == 5, number
    for path in Path().glob("*.csv*"):
        path.unlink()
    for expected in written:
        Path("bert.csv").unlink(missing_ok=True)
        done = torchrun("pool.npy", None, "--annotators", *files, *common)
        assert done.returncode == 0, done.stderr
        assert [Path(name).read_bytes() for file in files for name in (file, f"{file}.pool.json")] == expected


@pytest.mark.usefixtures("data")
def test_a_process_keeps_its_part_of_a_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("parts").mkdir()
    for number in range(2):
        np.save(f"parts/{number}.npy", np.load("pool.npy"))
    monkeypatch.setattr(processes, "common_layout", lambda _, features: (features, [0, ROWS, 2 * ROWS]))
    ranks = Ranks()
    ranks.rank, ranks.size = 1, 2
    features, shard = processes.map_shard("--pool", Path("parts"), ranks)
    assert features.numpy().tobytes() == np.load("pool.npy").tobytes()
    assert features.untyped_storage().nbytes() == features.nbytes
    assert shard.numbers == slice(ROWS, 2 * ROWS)


@pytest.mark.usefixtures("data")
def test_all_processes_have_the_model_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors of different kinds fit models that differ in their last digits."""
    options = _parser().parse_args(["select", "--pool", "pool.npy", *FILES, "--out", "out.csv"])
    start = Start(options, *processes.map_shard("--pool", options.pool, Ranks()))
    monkeypatch.setattr(Ranks, "from_first", lambda *given: torch.full_like(given[-1], 7))
    model = start.model(start.answers([]))
    assert set(model.mean.flatten().tolist()) | set(model.covariance.flatten().tolist()) == {7.0}


@pytest.mark.usefixtures("data")
def test_an_error_on_one_rank_writes_nothing() -> None:
    np.save("part0.npy", np.load("pool.npy"))
    done = torchrun("part{rank}.npy", "shared.csv")
    assert done.returncode != 0
    assert "error: --pool must be an existing file, got part1.npy" in done.stderr
    assert not Path("shared.csv").exists()


@pytest.mark.usefixtures("data")
def test_more_pool_files_than_processes_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise a single process would choose from one part, as if that were the whole pool."""
    for rank in range(2):
        np.save(f"part{rank}.npy", np.load("pool.npy"))
    assert main(["select", "--pool", "part{rank}.npy", *FILES, "--out", "shared.csv"]) == 1
    assert "--pool has a file for process 1 too, part1.npy, and there are 1 (from 0)" in capsys.readouterr().err
    assert not Path("shared.csv").exists()


@pytest.mark.usefixtures("data")
def test_one_process_of_several_may_select_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that torchrun has started may do so. Without the option the process would wait for the others."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of the script")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert select("--alone", "--number", 3) == 0
    assert len(lines()) == 3


@pytest.mark.usefixtures("data")
def test_interactive_refuses_several_processes() -> None:
    done = torchrun("pool.npy", "shared.csv", "--interactive")
    assert done.returncode != 0
    assert "error: --interactive asks one person: start it without torchrun" in done.stderr
