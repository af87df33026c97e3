"""Settings that ours chooses by itself, for the peers that must be told them to do the same work."""

import math

import torch
from torch import Tensor

from benchmarks.peers.task import N_CLASSES, Task
from lapal_ext.acquisition.close_rows import CloseRows
from lapal_ext.acquisition.probcover import pure_radius
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.pool.pool import Pool
from lapal_ext.rules import LINKS

NEIGHBOURS = 20  # of TypiClust, the paper's number
_SAMPLES = 128  # of the logits, for BALD


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def radius(task: Task) -> float:
    """The radius of ``probcover`` with the seed of ``seeded``."""
    pool = Pool(task.posterior, task.pool)
    seed = choose_seed("probcover", LINKS["plugin"], len(task.pool), seeded())
    return math.sqrt(pure_radius(pool, CloseRows(pool, task.labelled, 0.0), N_CLASSES, seed, 0)[0])


def squared_bandwidth(task: Task) -> float:
    """h^2 of ``maxherding``, for rows without copies."""
    units = torch.nn.functional.normalize(task.labelled, dim=1)
    nearest = (2.0 - 2.0 * units @ units.T).fill_diagonal_(torch.inf).amin(1)
    return float(nearest.median()) * min(1.0, math.sqrt(100 / len(units)))


def noise() -> Tensor:  # [S, C]
    """Draws from N(0, 1) for samples of the logits."""
    return torch.randn(_SAMPLES, N_CLASSES, generator=seeded())
