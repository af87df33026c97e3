"""Processes that torchrun has started for one command, and the part of the pool that each of them reads."""

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lapal_ext.cli.errors import CommandError
from lapal_ext.pool.feature_files import map_file
from lapal_ext.pool.sharding import Ranks, Shard, common_layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup

_RANK = "{rank}"  # in a file name, if every process has its own file


@contextmanager
def started_by_torchrun(*, alone: bool) -> "Iterator[ProcessGroup | None]":
    """The group of all processes for the body, after which this process ends; None without torchrun or if ``alone``."""
    from torch import distributed

    if alone or not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield None
        return
    distributed.init_process_group("gloo")
    try:
        yield distributed.group.WORLD
    finally:
        distributed.destroy_process_group()
    # All output is written. Threads of gloo may still be releasing a message, which needs the interpreter, and would
    # abort the process during the shutdown of the interpreter. os._exit ends the process without that shutdown.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def map_shard(name: str, path: Path, ranks: Ranks) -> tuple[Tensor, Shard]:  # [n, D]
    """The rows of this process, from its own file or a part of the common one, and how the rows are distributed.

    Raises:
        CommandError: there are more files than processes.
    """
    if _RANK in str(path):
        if _file_of(path, ranks.size).exists():
            raise CommandError(
                f"{name} has a file for process {ranks.size} too, {_file_of(path, ranks.size)}, and there are "
                f"{ranks.size} (from 0): start as many with torchrun --nproc-per-node"
            )
        features = map_file(name, _file_of(path, ranks.rank))
    else:
        rows = map_file(name, path)
        bounds = [len(rows) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1)]
        features = rows[slice(*bounds)]
        if path.is_dir() and ranks.size > 1:
            features = features.clone()  # so that the joined parts of all processes are freed
    features, bounds = common_layout(ranks, features)
    return features, Shard(ranks, bounds)


def _file_of(path: Path, rank: int) -> Path:
    return Path(str(path).replace(_RANK, str(rank)))
