"""Selections that must be the same in one process and in several."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.problems import Problem, make_problem

N_POOL = 97
BATCH = 7
COPIES_ALONE = "badge, only copies are left"
SHARDS = {1: [97], 2: [0, 97], 3: [1, 0, 96], 4: [1, 50, 3, 43]}  # rows of each rank, by the number of ranks
SHARDABLE = [name for name in ACQUISITIONS if name not in ("typiclust", "probcover")]


class Case(NamedTuple):
    """Arguments of ``select_batch`` besides posterior and pool, created for each call."""

    arguments: Callable[[Problem], dict[str, Any]]
    storage: torch.dtype = torch.float32


def problem() -> Problem:
    """A problem with copies of rows on different ranks, which tie."""
    made = make_problem(n_pool=N_POOL, dtype=torch.float32)
    for copy, row in ((90, 3), (40, 70)):
        made.pool[copy], made.labels[copy] = made.pool[row], made.labels[row]
    return made


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def _peakedness(posterior, pool):
    return -posterior.predict_proba(pool).amax(1)


def _cases() -> dict[str, Case]:
    ways = [(name, *way) for name in SHARDABLE for way in (("plugin", 1), ("mean_field", 3))]
    cases = {
        f"{name}, {link}, every {every}": Case(
            lambda _, name=name, link=link, every=every: {
                "acquisition": name, "link": link, "update_every": every, "generator": generator()
            }
        )
        for name, link, every in [*ways, ("bald", "mc", 1)]
    }  # fmt: skip
    for acquisition in ("margin", "bait", "badge", "uherding"):
        cases[f"{acquisition}, candidates"] = Case(
            lambda _, name=acquisition: {
                "acquisition": name, "candidates": torch.tensor([80, 2, 61, 60, 96, 5, 0, 33, 59, 47, 46]),
                "exclude": torch.tensor([60, 33]), "generator": generator(),
            }
        )  # fmt: skip
        cases[f"{acquisition}, true labels"] = Case(
            lambda made, name=acquisition: {"acquisition": name, "targets": made.labels, "generator": generator()}
        )
        cases[f"{acquisition}, half"] = Case(
            lambda _, name=acquisition: {"acquisition": name, "generator": generator()}, torch.bfloat16
        )
    cases["rows in arrays"] = Case(
        lambda _: {"candidates": np.array([80, 2, 61, 60, 96, 5, 0, 33, 59, 47, 46]), "exclude": np.array([60, 33])}
    )
    cases[COPIES_ALONE] = Case(
        lambda _: {
            "acquisition": "badge",
            "candidates": torch.tensor([3, 90, 40, 70]),
            "batch_size": 4,
            "generator": generator(),
        }
    )
    cases["sampled labels"] = Case(lambda _: {"targets": "sampled", "generator": generator()})
    cases["labels asked for"] = Case(lambda made: {"targets": lambda row: int(made.labels[row])})
    cases["no labels"] = Case(lambda _: {"targets": None, "acquisition": "variance", "update_every": 1})
    cases["labelled rows"] = Case(lambda made: {"labelled": made.eval_features, "batch_size": 30})
    cases["a sample of references"] = Case(
        lambda _: {"acquisition": "uherding", "references": 20, "generator": generator()}
    )
    cases["references that are no candidates"] = Case(
        lambda made: {
            "acquisition": "maxherding",
            "labelled": made.eval_features,
            "references": torch.tensor([96, 1, 4, 44, 52, 51, 0, 95]),
            "candidates": torch.tensor([80, 2, 61, 60, 96, 5, 0, 33, 59, 47, 46]),
        }
    )
    cases["uncertainty in numbers"] = Case(
        lambda made: {"acquisition": "uherding", "uncertainty": made.pool[:, 0].abs(), "memory": 64.0}
    )
    cases["at once"] = Case(lambda _: {"targets": None, "update_every": BATCH})
    cases["a callable"] = Case(lambda _: {"acquisition": _peakedness})
    cases["little memory"] = Case(lambda _: {"memory": 64.0})
    cases["memory too small for one of the shards"] = Case(lambda _: {"memory": 4 * 5 * 50.0})
    cases["every row"] = Case(lambda _: {"batch_size": N_POOL})
    return cases


CASES = _cases()
