"""Processes that torchrun has started for one command, and the part of the pool that each of them reads."""

import gc
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lapal_ext.memory_map import map_file
from lapal_ext.ranks import Alone, Ranks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.distributed import ProcessGroup

_RANK = "{rank}"  # in a file name, where every process has a file of its own


@contextmanager
def started_by_torchrun() -> "Iterator[ProcessGroup | None]":
    """The group of all processes for the time of the body, or None where torchrun has not started this one."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield None
        return
    distributed.init_process_group("gloo")
    try:
        yield distributed.group.WORLD
    finally:
        # The threads of a group that something still refers to when Python ends abort the process; the first fit of a
        # process leaves a cycle through the frames above it.
        gc.collect()
        distributed.destroy_process_group()


def map_shard(name: str, path: Path, ranks: Alone | Ranks) -> Tensor:  # [n, D]
    """The rows of this process: its own file, or its part of the common one."""
    if _RANK in str(path):
        return map_file(name, Path(str(path).replace(_RANK, str(ranks.rank))))
    rows = map_file(name, path)
    bounds = [len(rows) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1)]
    return rows[slice(*bounds)]
