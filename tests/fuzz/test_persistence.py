"""A saved model or selector can be loaded in another process, without kernels, and after SIGKILL at any step.

pytest -m slow tests/fuzz/test_persistence.py
"""

import json
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from lapal_ext import LastLayerLaplace, SequentialSelector
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.fuzz.calls import bits
from tests.fuzz.processes import forked, kill_after_bytes, kill_at_step, python
from tests.fuzz.tally import count
from tests.problems import make_problem

CAMPAIGN = "persistence"

PREDICT = """
import sys, torch, lapal_ext
from tests.problems import make_problem
assert lapal_ext.build_info()["native"] <= (sys.argv[3] == "auto")  # "auto" has none where none are built
posterior = lapal_ext.LastLayerLaplace.load(sys.argv[1])
pool = torch.load(sys.argv[2], weights_only=True)
torch.save([posterior.predict_proba(pool), *posterior.predict_latent(pool)], sys.argv[2])
"""


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_another_process_without_kernels_predicts_the_same(tmp_path: Path, dtype: torch.dtype) -> None:
    posterior, pool, labels, *_ = make_problem(dtype=dtype)
    posterior.update(pool[:9], labels[:9]).save(tmp_path / "p")
    wanted = [posterior.predict_proba(pool), *posterior.predict_latent(pool)]
    for backend in ("auto", "reference"):
        torch.save(pool, tmp_path / "x")
        python(PREDICT, tmp_path / "p", tmp_path / "x", backend, environment={"LAPAL_EXT_BACKEND": backend})
        for value, expected in zip(torch.load(tmp_path / "x", weights_only=True), wanted, strict=True):
            torch.testing.assert_close(value, expected)  # torch's own tolerance for the dtype
        count(CAMPAIGN, "processes that predicted the same")


RESUME = """
import json, sys, torch
from tests.fuzz.test_persistence import questions, selector
if sys.argv[1].endswith(".json"):
    states = json.load(open(sys.argv[1]))
    states = {key: {name: torch.tensor(value) for name, value in state.items()} for key, state in states.items()}
else:
    states = torch.load(sys.argv[1], weights_only=True)
asked = {}
for acquisition, state in states.items():
    resumed = selector(acquisition)
    resumed.load_state_dict(state)
    asked[acquisition] = questions(resumed)
print(json.dumps(asked))
"""


def selector(acquisition: str) -> SequentialSelector:
    posterior, pool, *_ = make_problem()
    generator = torch.Generator().manual_seed(5)
    return SequentialSelector(posterior, pool, acquisition, generator=generator, labelled=pool[:2])


def questions(resumed: SequentialSelector) -> list[list[int]]:
    """What is asked from here on, with answers in between."""
    asked = [resumed.ask(n=5).tolist()]
    resumed.tell(torch.tensor(asked[0][3:]), torch.tensor([0, 3]))
    for label in (1, 2, 0):
        asked.append(resumed.ask().tolist())
        resumed.tell(asked[-1][0], label)
    return [*asked, resumed.ask(n=3).tolist()]


def test_selections_resume_amid_a_batch(tmp_path: Path) -> None:
    states, wanted = {}, {}
    for acquisition in ACQUISITIONS:
        amid = selector(acquisition)
        amid.tell(amid.ask(), 1)
        batch = amid.ask(n=5)
        amid.tell(batch[:2], torch.tensor([2, 0]))
        amid.skip(batch[2])
        states[acquisition] = amid.state_dict()
        wanted[acquisition] = questions(amid)
    torch.save(states, tmp_path / "states.pt")
    lists = {key: {name: value.tolist() for name, value in state.items()} for key, state in states.items()}
    (tmp_path / "states.json").write_text(json.dumps(lists))
    for name in ("states.pt", "states.json"):
        assert json.loads(python(RESUME, tmp_path / name)) == wanted
        count(CAMPAIGN, "selections resumed amid a batch in a new process", len(wanted))


def versions(folder: Path) -> tuple[list[LastLayerLaplace], list[object]]:
    """Two posteriors, and the bits of either; the first one is in ``folder / "p"``."""
    both = [make_problem(n_features=100, seed=seed).posterior for seed in (0, 1)]
    both[0].save(folder / "p")
    return both, [bits(each) for each in both]


@pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")
def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """Killed before each step in turn; a step opens, moves or removes a file."""
    (old, new), (bits_old, bits_new) = versions(tmp_path)

    def killed(step: int) -> None:
        kill_at_step(step, tmp_path)
        new.save(tmp_path / "p")

    step = 1
    while (status := forked(partial(killed, step))) != 0:
        assert status == -signal.SIGKILL
        assert bits(LastLayerLaplace.load(tmp_path / "p")) in (bits_old, bits_new)
        count(CAMPAIGN, "saves killed, after each of which the file was whole")
        old.save(tmp_path / "p")
        step += 1
    assert bits(LastLayerLaplace.load(tmp_path / "p")) == bits_new
    assert step > 2


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("parts", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_a_save_that_is_killed_amid_its_bytes_leaves_the_old_file(tmp_path: Path, parts: int) -> None:
    (_, new), (bits_old, _) = versions(tmp_path)
    size = (tmp_path / "p").stat().st_size

    def killed(written: int) -> None:
        kill_after_bytes(written)
        new.save(tmp_path / "p")

    for part in range(parts):
        assert forked(partial(killed, part * size // parts)) == -signal.SIGXFSZ
        assert bits(LastLayerLaplace.load(tmp_path / "p")) == bits_old
        count(CAMPAIGN, "saves killed, after each of which the file was whole")
