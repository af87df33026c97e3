"""The checksum of a pool: what it notices, and what does not change it."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lapal_ext.pool.checksum import COMPARED, PoolChecksum, checksum
from lapal_ext.pool.feature_files import as_tensor
from lapal_ext.pool.sharding import Ranks, Shard
from tests.draws import Draw

SIZES = [1, 2, 60, COMPARED, COMPARED + 1, 5000]


def pool_of(n_rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return Draw(3).normal(n_rows, 4).to(dtype)


def swapped(pool: Tensor) -> Tensor:
    pool[[0, -1]] = pool[[-1, 0]]
    return pool


def one_value(pool: Tensor) -> Tensor:
    pool[len(pool) - 1, 2] += 1e-3
    return pool


CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "reversed": (lambda pool: pool.flip(0), "order"),
    "shifted by one": (lambda pool: pool.roll(1, 0), "order"),
    "sorted": (lambda pool: pool[pool[:, 0].argsort()], "order"),
    "shuffled": (lambda pool: pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(1))], "order"),
    "two rows swapped": (swapped, "order"),
    "a row less, a row more": (lambda pool: torch.cat([pool[1:], pool[:1] + 1]), "values"),
    "one value": (one_value, "values"),
    "another scale": (lambda pool: pool * 2, "values"),
    "other columns": (lambda pool: pool.flip(1), "values"),
    "more rows": (lambda pool: torch.cat([pool, pool[:1]]), "rows and not"),
    "fewer rows": (lambda pool: pool[:-1], "rows and not"),
    "more columns": (lambda pool: torch.cat([pool, pool[:, :1]], 1), "5 columns and not 4"),
    "another dtype": (lambda pool: pool.double(), "dtype float64 and not float32"),
}


@pytest.mark.parametrize("size", SIZES[2:])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_and_named(change: str, size: int) -> None:
    pool = pool_of(size)
    before = checksum(pool)
    alter, words = CHANGES[change]
    difference = before.difference(checksum(alter(pool.clone())))
    assert difference is not None
    assert words in difference
    if words == "order" and size <= COMPARED:
        assert difference == "has the same rows in another order"
    if words == "values" and size <= COMPARED:
        assert difference == "has rows with other values"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_it_does_not_depend_on_layout_or_storage(size: int, dtype: torch.dtype, tmp_path: Path) -> None:
    pool = pool_of(size, dtype)
    expected = checksum(pool)
    wide = torch.cat([pool, pool], 1)
    forms: list[Tensor] = [pool.clone(), wide[:, :4], pool.T.contiguous().T, torch.cat([pool, pool])[:size]]
    save_file({"features": pool}, tmp_path / "pool.safetensors")
    forms.append(as_tensor("pool", tmp_path / "pool.safetensors"))
    if dtype != torch.bfloat16:
        np.save(tmp_path / "pool.npy", pool.numpy())
        forms += [as_tensor("pool", tmp_path / "pool.npy"), as_tensor("pool", pool.numpy())]
    assert [checksum(form) for form in forms] == [expected] * len(forms)
    with torch.inference_mode():
        assert checksum(pool.clone()) == expected
    assert PoolChecksum.from_numbers(expected.as_tensor().tolist()) == expected


class Together(Ranks):
    """Ranks that run one after another, twice: their messages are collected first, and then added up."""

    def __init__(self, rank: int, size: int, sent: list[Tensor]) -> None:
        super().__init__()
        self.rank, self.size, self.sent = rank, size, sent

    def add(self, value: Tensor) -> Tensor:
        self.sent.append(value)
        return torch.stack(self.sent[: self.size]).sum(0)


@pytest.mark.parametrize("bounds", [[0, 30, 30, 60], [0, 0, 0, 60], [0, 1, 59, 60], [0, 20, 40, 60]])
@pytest.mark.parametrize("factor", [1, 100])
def test_all_ranks_have_the_checksum_of_one_process(bounds: list[int], factor: int) -> None:
    bounds = [bound * factor for bound in bounds]
    pool, sent = pool_of(bounds[-1]), list[Tensor]()
    pool[5] = -0.0  # which a sum over ranks would change
    for _ in range(2):
        found = []
        for rank in range(3):
            ranks = Together(rank, 3, sent)
            found.append(checksum(pool[bounds[rank] : bounds[rank + 1]], Shard(ranks, bounds), ranks))
    assert found == [checksum(pool)] * 3


def test_a_change_of_one_row_of_many_may_go_unnoticed() -> None:
    """The limit that the module states: few rows are read, whatever the size of the pool."""
    pool = pool_of(5000)
    before = checksum(pool)
    noticed = 0
    for row in range(0, 5000, 7):
        changed = pool.clone()
        changed[row] += 1
        noticed += checksum(changed) != before
    assert 0.1 < noticed / (5000 / 7) < 0.3


@pytest.mark.parametrize("numbers", [[], [1], [1, 2, 9, 0, 0], [1, 2, -1, 0, 0], [0] * 6])
def test_other_numbers_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="not a checksum of a pool"):
        PoolChecksum.from_numbers(numbers)


def test_a_pool_without_columns_is_named():
    with pytest.raises(ValueError, match=re.escape("pool must have a column or more, got shape (300, 0)")):
        checksum(torch.zeros(300, 0))
