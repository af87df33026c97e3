"""A problem to select rows from, and wrong values of the arguments that only selection has."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lapal_ext import (
    LastLayerLaplace,
)
from tests.fuzz import values
from tests.fuzz.values import Bad, put
from tests.problems import make_problem

problem = make_problem()
LA, POOL, LABELS, POINTS, TRUTH = problem
CANDIDATES = torch.tensor([3, 1, 7, 20, 33, 5])
BATCHES = torch.tensor([[0, 1, 2], [3, 4, 5]])
N = len(POOL)


def acquisitions() -> values.Table:
    def returns(make: Callable[[int], object]) -> Callable[[LastLayerLaplace, Tensor], object]:
        return lambda _, pool: make(len(pool))

    says = "must be one of 'margin', .*, got"
    return {
        "a list": Bad(["margin"], ValueError, says),
        "unknown": Bad("bogus", ValueError, says),
    } | {
        f"gives {words}": Bad(returns(make), error, says)
        for words, make, error, says in (
            ("a list", lambda n: [0.0] * n, TypeError, r".*must be a torch\.Tensor.*, got list"),
            ("None", lambda _: None, TypeError, r".*must be a torch\.Tensor.*, got NoneType"),
            ("texts of numpy", lambda n: np.full(n, "x"), TypeError, ".*must hold numbers"),
            ("integers", lambda n: torch.zeros(n, dtype=torch.int64), TypeError, ".*must be floating point"),
            ("complex", lambda n: torch.zeros(n, dtype=torch.complex64), TypeError, ".*must be floating point"),
            ("too few", lambda n: torch.zeros(n - 1), ValueError, rf".*must have shape \({N},\), one per row"),
            ("a column", lambda n: torch.zeros(n, 1), ValueError, rf".*must have shape \({N},\), .*\({N}, 1\)"),
            ("meta", lambda n: torch.zeros(n, device="meta"), ValueError, ".*must be on cpu, got meta"),
            ("sparse", lambda n: torch.zeros(n).to_sparse(), TypeError, ".*must be a dense tensor"),
            ("a NaN", lambda n: put(torch.zeros(n), math.nan, 3), ValueError, ".*gave a utility that is not a number"),
        )
    }


def annotators() -> values.Table:
    return {
        f"an annotator says {answer}": Bad(lambda _, answer=answer: answer, error, says)
        for answer, error, says in (
            (None, TypeError, r"\(\d+\) must be an integer, got NoneType"),
            (1.0, TypeError, r"\(\d+\) must be an integer, got float"),
            ("1", TypeError, r"\(\d+\) must be an integer, got str"),
            (True, TypeError, r"\(\d+\) must be an integer, got bool"),
            (torch.tensor(1.0), TypeError, r"\(\d+\) must be an integer, got Tensor"),
            (torch.tensor(True), TypeError, r"\(\d+\) must be an integer, got Tensor"),
            (4, ValueError, r"\(\d+\) must be at most 3 \(the last class\), got 4"),
            (-1, ValueError, r"\(\d+\) must be at least 0, got -1"),
        )
    }


def rows(good: Tensor, name: str) -> values.Table:
    kinds = {
        "float": Bad(good.double(), TypeError, r"must hold integers, got torch\.float64"),
        "bool": Bad(good > 0, TypeError, r"must hold integers, got torch\.bool: of a mask pass mask\.nonzero"),
        "meta": Bad(good.to("meta"), ValueError, "must be on cpu, got meta"),
    }
    if name == "batches":  # no row numbers come of a mask with two dimensions
        kinds["bool"] = Bad(good > 0, TypeError, r"must hold integers, got torch\.bool$")
        kinds["a list of numbers"] = Bad([0, 1], ValueError, r"must have shape \(M, b\), got \(2,\)")
    accepted = ("list",) if name == "batches" else ("None", "list")
    return {
        **{words: bad for words, bad in values.not_dense(good).items() if words not in accepted},
        **kinds,
        "negative": Bad(put(good, -1), ValueError, rf"must lie in \[0, {N}\), one of the rows of pool, got -1"),
        "N": Bad(put(good, N), ValueError, rf"must lie in \[0, {N}\), one of the rows of pool, got {N}"),
        "twice": Bad(put(good, int(good.view(-1)[1])), ValueError, "must not hold (duplicates|a row twice)"),
        "one dimension more": Bad(good[None], ValueError, "must have shape"),
        "a scalar": Bad(torch.tensor(3), ValueError, "must have shape"),
    }
