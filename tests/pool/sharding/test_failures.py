"""An error on one rank raises on all at once, and names the rank and the error; a rank that dies is noticed."""

import asyncio
import os
import signal
import time
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, distributed

from lapal_ext import RankError, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.pool.sharding.cases import SHARDABLE, problem
from tests.pool.sharding.processes import TIMEOUT, run, shard_of
from tests.problems import Problem

SIZE = 3


class Call(NamedTuple):
    """The problem and the shard of one rank, which a failure may change."""

    made: Problem
    pool: Tensor
    rank: int


def _not_finite(call: Call):
    if call.rank == 2:
        call.pool[1, 1] = torch.nan
    return {}


def _unknown_candidates(call: Call):
    return {"candidates": torch.tensor([5, 20, 30, 200 if call.rank == 0 else 40])}


def _other_batch_size(call: Call):
    return {"batch_size": 3 + call.rank}


def _other_posterior(call: Call):
    if call.rank == 1:
        call.made.posterior.update(call.made.eval_features[:1], call.made.eval_targets[:1])
    return {}


def _other_step(call: Call):
    return {"step": "newton" if call.rank == 2 else "line_search"}


def _failing_annotator(_: Call):
    return {"targets": _raising(KeyError("no label"))}


def _nan_on_one_rank(call: Call):
    return {"acquisition": lambda _, rows: torch.full((len(rows),), torch.nan if call.rank == 2 else 1.0)}


def _late_error(call: Call):
    calls = []

    def acquisition(_, rows):
        calls.append(rows)
        if call.rank == 0 and len(calls) == 3:
            raise OSError("the disk is gone")
        return torch.arange(float(len(rows)))

    return {"acquisition": acquisition, "batch_size": 5}


def _other_targets(call: Call):
    return {"targets": "predicted" if call.rank == 1 else "sampled"}


def _annotator_raises(error: BaseException):
    return lambda _: {"targets": _raising(error)}


def _no_text(call: Call):
    class NoTextError(Exception):
        def __str__(self) -> str:
            raise ValueError

    def acquisition(_, rows):
        if call.rank == 1:
            raise NoTextError
        return torch.arange(float(len(rows)))

    return {"acquisition": acquisition}


def _text_of_another_alphabet(_: Call):
    return {"targets": _raising(FileNotFoundError(os.fsdecode(b"caf\xe9")))}


def _raising(error: BaseException):
    def annotate(_: int) -> int:
        raise error

    return annotate


# Name -> how it is caused, the rank that raises it (None: all of them), type and text of the error.
FAILURES = {
    "not finite": (_not_finite, 2, "ValueError", "pool must be finite"),
    "candidates": (_unknown_candidates, 0, "ValueError", "candidates must lie in"),
    "batch size": (
        _other_batch_size,
        None,
        "ValueError",
        "batch_size must be the same on every rank, rank 1 has another",
    ),
    "posterior": (_other_posterior, None, "ValueError", "posterior must be the same on every rank, rank 1 has another"),
    "step": (_other_step, None, "ValueError", "step must be the same on every rank, rank 2"),
    "annotator": (_failing_annotator, 0, "KeyError", "no label"),
    "utilities": (_nan_on_one_rank, 2, "ValueError", "gave a utility that is not a number"),
    "targets": (_other_targets, None, "ValueError", "targets must be the same on every rank, rank 1 has another"),
    "interrupted": (_annotator_raises(KeyboardInterrupt()), 0, "KeyboardInterrupt", ""),
    "exit": (_annotator_raises(SystemExit(3)), 0, "SystemExit", "3"),
    "closed": (_annotator_raises(GeneratorExit()), 0, "GeneratorExit", ""),
    "cancelled": (_annotator_raises(asyncio.CancelledError("no time")), 0, "CancelledError", "no time"),
    "no text": (_no_text, 1, "NoTextError", ""),
    "text": (_text_of_another_alphabet, 0, "FileNotFoundError", "caf"),
    "late": (_late_error, 0, "OSError", "the disk is gone"),
}


def fail_all(group, rank):
    """The errors of all failures on this rank; the group still works after each."""
    errors = {}
    for name, (spoil, *_) in FAILURES.items():
        made = problem()
        pool = shard_of(made.pool, rank, SIZE).clone()
        try:
            select_batch(made.posterior, pool, **{"batch_size": 3, "group": group, **spoil(Call(made, pool, rank))})
            errors[name] = None
        except BaseException as error:  # noqa: BLE001 the test checks which error it is
            errors[name] = [type(error).__name__, "" if "NoText" in type(error).__name__ else str(error)]
    made = problem()
    result = select_batch(made.posterior, shard_of(made.pool, rank, SIZE), 3, group=group)
    errors["afterwards"] = result.indices.tolist()
    storage = torch.float16 if rank == 0 else torch.bfloat16
    try:
        select_batch(made.posterior, shard_of(made.pool, rank, SIZE).to(storage), 3, group=group)
    except ValueError as error:
        errors["dtypes"] = str(error)
    return errors


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    return run(fail_all, [SIZE], tmp_path_factory.mktemp("failures") / "folder")[SIZE]


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_on_one_rank_is_one_on_all(errors, name: str) -> None:
    _, culprit, kind, text = FAILURES[name]
    for rank, raised in enumerate(each[name] for each in errors):
        if culprit in (None, rank):
            assert raised[0] == kind
            assert text in raised[1]
        else:
            assert raised[0] == "RankError"
            assert f"rank {culprit} stopped with {kind}" in raised[1]
            assert text in raised[1]


def test_the_group_still_works_after_errors(errors) -> None:
    made = problem()
    expected = select_batch(made.posterior, made.pool, 3).indices.tolist()
    assert [each["afterwards"] for each in errors] == [expected] * SIZE


def test_several_dtypes_are_refused(errors) -> None:
    """The shard without rows is not named, since it takes the dtype of the others."""
    assert [each["dtypes"] for each in errors] == [
        "pool must have one dtype on all ranks, got torch.float16 on rank 0 and torch.bfloat16 on rank 2"
    ] * SIZE


def lose_one(group, rank):
    """Rank 1 dies while it scores its second pick; the others return the seconds until they noticed, and the error."""
    made = problem()
    calls = []

    def acquisition(_, rows):
        calls.append(rows)
        if rank == 1 and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.arange(float(len(rows)))

    started = time.monotonic()
    try:
        select_batch(made.posterior, shard_of(made.pool, rank, SIZE), 5, acquisition, group=group)
    except RankError as error:
        (seconds, text) = time.monotonic() - started, str(error)
        distributed.barrier = lambda: None  # the barrier at the end would wait for the dead rank
        return [seconds, text]
    return None


def test_a_dead_rank_is_noticed(tmp_path) -> None:
    first, dead, last = run(lose_one, [SIZE], tmp_path / "folder", check=False)[SIZE]
    assert dead is None
    for seconds, text in (first, last):
        assert "a rank of group no longer responds" in text
        assert seconds < TIMEOUT


@pytest.mark.parametrize("group", ["gloo", 3, object()], ids=["name", "number", "object"])
def test_a_group_of_another_type_is_refused(group) -> None:
    made = problem()
    with pytest.raises(TypeError, match="group must be a torch\\.distributed process group"):
        select_batch(made.posterior, made.pool, group=group)


@pytest.mark.parametrize("name", [name for name in ACQUISITIONS if name not in SHARDABLE])
def test_acquisitions_that_need_all_rows_in_one_process_are_refused(tmp_path, name: str) -> None:
    distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", world_size=1, rank=0)
    try:
        made = problem()
        with pytest.raises(ValueError, match=f"acquisition must not need all rows in one process .* got '{name}'"):
            select_batch(made.posterior, made.pool, acquisition=name, group=distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()
