"""The table of the peers: what is compared, and what it says where nothing can be."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.peers import checks, comparison
from benchmarks.peers.comparison import Outcome, Peer, Row, measure
from benchmarks.peers.markdown import HEAD, line
from benchmarks.peers.rows import rows
from benchmarks.peers.settings import seeded
from benchmarks.peers.task import make_task
from lapal_ext import select_batch

linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, and memory is read from /proc")


def ours(_: Any) -> Callable[[], Tensor]:
    return lambda: torch.zeros(2)


def prepare_peer(name: str) -> Callable[[Any], Callable[[], Any]]:
    """A peer that needs 60 MiB, or one that cannot be compared."""

    def call() -> Tensor:
        if name == "raises":
            raise TypeError("no\nsuch argument")
        big = torch.ones(60 << 18)
        return big[:2] if name == "other work" else 0 * big[:2]

    if name == "missing":
        raise ModuleNotFoundError("No module named 'missing'")
    return lambda _: call


def same(_: Any, expected: Tensor, result: Tensor) -> str:
    if not torch.equal(expected, result):
        raise AssertionError("ones where ours has zeros")
    return "all equal"


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Outcome]:
    monkeypatch.setattr(comparison, "load", lambda peer: prepare_peer(peer.name))
    monkeypatch.setattr(comparison, "_BUDGET", 0.0)
    peers = [Peer(name, "", "") for name in ("missing", "other work", "raises", "agrees")]
    return {outcome.peer: outcome for outcome in measure(Row("work", "10", lambda: None, ours, same, peers))}


@linux
def test_what_cannot_be_compared_is_a_named_gap(outcomes: dict[str, Outcome]) -> None:
    gaps = {peer: outcome.gap for peer, outcome in outcomes.items()}
    assert gaps == {
        "missing": "not installed: No module named 'missing'",
        "other work": "not the same work: ones where ours has zeros",
        "raises": "TypeError: no\nsuch argument",
        "agrees": "",
    }
    assert line(outcomes["raises"]) == "| work | 10 | raises | – | – | – | – | – | TypeError: no such argument |"


@linux
def test_a_peer_that_agrees_has_times_and_memory(outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes["agrees"]
    assert outcome.agreement == "all equal"
    assert min(outcome.ours, outcome.theirs, outcome.ratio) > 0
    assert outcome.memory < 30
    assert 50 < outcome.their_memory < 90


def test_the_table_says_where_we_lose() -> None:
    slower = Outcome("work", "10", "peer", "", "equal", 0.5, 0.21, 0.42, 1.0, 2.0)
    assert line(slower) == "| work | 10 | peer | 500 | 210 | **0.42×** | 1 | 2 | equal |"
    assert "| 1× |" in line(slower._replace(ratio=0.996))
    part = slower._replace(ratio=123.4, part=0.1, ours=0.0123, memory=float("nan"))
    assert line(part) == "| work | 10 | peer | 12 | 210* | 123× | – | 2* | equal |"
    assert HEAD.splitlines()[0].count("|") == line(part).count("|")


def test_every_row_has_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the libraries: the rows themselves."""
    monkeypatch.delenv("LAPAL_EXT_DATA", raising=False)
    usual = list(rows())
    assert len({row.work for row in usual}) == len(usual)
    assert all(row.peers for row in usual)


def test_a_fit_that_ends_higher_or_elsewhere_is_not_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAPAL_EXT_DATA", raising=False)
    row = next(row for row in rows() if row.work == "`fit_map`, digits")
    task = row.task()
    weights = row.ours(task)()
    assert row.check(task, weights, weights).startswith("probabilities within 0, our objective")
    with pytest.raises(AssertionError, match="the objective is"):
        row.check(task, weights + 0.1 * torch.randn(weights.shape), weights)
    with pytest.raises(AssertionError, match="the probabilities differ"):
        row.check(task, weights, 0.0 * weights)


def test_random_rows_are_not_those_of_badge() -> None:
    task = make_task(3000)
    ours = select_batch(task.posterior, task.pool, 100, "badge", targets=None, generator=seeded()).indices
    checks.large_gradients(task, ours, ours)
    with pytest.raises(AssertionError, match="the squared norm of theirs"):
        checks.large_gradients(task, ours, torch.arange(100))
