"""Processes that call ``select_batch`` together, and their results."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

from lapal_ext import select_batch
from lapal_ext.posterior.calibration import Calibration
from lapal_ext.selection.stopping import changed_classes, expected_accuracy
from tests.pool.sharding.cases import BATCH, CASES, SHARDS, problem

STOPPING = "stopping"
Job = Callable[[distributed.ProcessGroup, int], Any]
# Seconds after which the group gives up. Errors are noticed long before, even on a busy machine.
TIMEOUT = 300.0


def shard_of(values: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    start = sum(SHARDS[size][:rank])
    return values[start : start + SHARDS[size][rank]]


def select_all(group: distributed.ProcessGroup, rank: int) -> dict[str, list[list[float]]]:
    """Every case on this rank's shard: rows, utilities, and the mean of the posterior afterwards."""
    size = distributed.get_world_size(group)
    results = {}
    for name, case in CASES.items():
        made = problem()
        arguments = {"batch_size": BATCH, **case.arguments(made)}
        for of_rows in ("targets", "uncertainty"):
            if isinstance(arguments.get(of_rows), torch.Tensor):
                arguments[of_rows] = shard_of(arguments[of_rows], rank, size)
        pool = shard_of(made.pool.to(case.storage), rank, size)
        result = select_batch(made.posterior, pool, group=group, **arguments)
        mean = result.posterior.mean.flatten().tolist()
        results[name] = [result.indices.tolist(), result.utilities.tolist(), mean]
    made = problem()
    results[STOPPING] = stopping(shard_of(made.pool, rank, size), group)
    return results


def stopping(pool: torch.Tensor, group: distributed.ProcessGroup | None = None) -> list[list[float]]:
    """The accuracy to expect, and the share of rows that a few labels change."""
    before, targets = problem().posterior, torch.arange(6) % 2
    after = before.condition_on(problem().pool[:6], targets)
    expected = expected_accuracy(after, pool, Calibration(0.8, 0.05), range(6), group)
    return [[*expected, changed_classes(before, after, pool, group)]]


def run(job: Job, sizes: list[int], folder: Path, *, check: bool = True) -> dict[int, list[Any]]:
    """What ``job`` returns, by the number of ranks and the rank; None where a process was lost."""
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    world = max(sizes)
    started = [context.Process(target=_work, args=(rank, sizes, job, folder)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(2 * TIMEOUT)
        assert process.exitcode is not None, "a rank hangs"
        assert process.exitcode == 0 or not check, "a rank failed: see its traceback above"
    return {size: [_result(folder, size, rank) for rank in range(size)] for size in sizes}


def _work(rank: int, sizes: list[int], job: Job, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=TIMEOUT), world_size=max(sizes), rank=rank
    )
    for size in sizes:
        group = distributed.new_group(list(range(size)))
        if rank < size:
            (folder / f"{size}.{rank}").write_text(json.dumps(job(group, rank)))
    distributed.barrier()
    distributed.destroy_process_group()


def _result(folder: Path, size: int, rank: int) -> Any:
    path = folder / f"{size}.{rank}"
    return json.loads(path.read_text()) if path.exists() else None
