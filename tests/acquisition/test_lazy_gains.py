"""Lazy greedy on gains that are easy to see: row j adds the parts of a set that no earlier pick has."""

import pytest
import torch
from torch import Tensor

from lapal_ext.acquisition.lazy_gains import LazyGains
from tests.draws import Draw

ROUNDING = 64 * torch.finfo(torch.float64).eps


def picks(parts: Tensor, count: int, *, lazy: bool) -> list[tuple[int, float]]:
    found = torch.zeros(parts.shape[1], dtype=torch.bool)
    taken = torch.zeros(len(parts), dtype=torch.bool)

    def evaluate(rows: Tensor) -> Tensor:
        return (parts[rows] & ~found).sum(1).double()

    everything = torch.arange(len(parts))
    gains = LazyGains(evaluate(everything), ROUNDING)
    chosen = []
    for _ in range(count):
        if not lazy:
            gains = LazyGains(evaluate(everything), ROUNDING)
        rows, best = gains.best(evaluate, taken)
        if len(rows) > 0:
            chosen.append((int(rows[0]), float(best[0])))
            taken[rows[0]] = True
            found |= parts[rows[0]]
    return chosen


@pytest.mark.parametrize("short", [1, 4, 8192])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_many_ties_and_zeros(density: float, short: int, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapal_ext.acquisition.lazy_gains._SHORT_LIST", short)
    monkeypatch.setattr("lapal_ext.acquisition.lazy_gains._AT_ONCE", 3)
    parts = draw.uniform(40, 25) < density
    expected = []
    found: set[int] = set()
    sets = [set(row.nonzero()[:, 0].tolist()) for row in parts]
    for _ in range(40):
        free = [row for row in range(40) if row not in [row for row, _ in expected]]
        best = max(free, key=lambda row: (len(sets[row] - found), -row))
        expected.append((best, float(len(sets[best] - found))))
        found |= sets[best]
    assert picks(parts, 41, lazy=True) == expected
    assert picks(parts, 41, lazy=False) == expected


def test_a_copy_leaves_the_bounds_as_they_were() -> None:
    bounds = torch.tensor([5.0, 4.0], dtype=torch.float64)
    gains = LazyGains(bounds, ROUNDING)
    taken = torch.zeros(2, dtype=torch.bool)
    rows, _ = gains.copy().best(lambda rows: torch.zeros(len(rows), dtype=torch.float64), taken)
    assert rows.tolist() == [0, 1]
    assert bounds.tolist() == [5.0, 4.0]
