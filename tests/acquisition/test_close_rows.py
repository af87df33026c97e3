"""Pairs of close rows: compared with all distances in float64."""

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace
from lapal_ext.acquisition import close_rows
from lapal_ext.acquisition.close_rows import CloseRows, Pairs
from lapal_ext.pool.pool import Pool
from tests.draws import Draw

N, D = 300, 6


def make_close_rows(rows: Tensor, others: Tensor, memory: float) -> CloseRows:
    posterior = LastLayerLaplace(torch.zeros(2, D, dtype=rows.dtype)).fit(rows[:10])
    return CloseRows(Pool(posterior, rows), others, memory)


def squares(x: Tensor, y: Tensor) -> Tensor:  # [n, m]
    return (x.double()[:, None] - y.double()[None]).square().sum(2)


def as_set(pairs: list[Pairs]) -> set[tuple[int, int]]:
    listed = [pair for tile in pairs for pair in zip(tile.first.tolist(), tile.second.tolist(), strict=True)]
    assert len(set(listed)) == len(listed)
    return set(listed)


@pytest.mark.parametrize("share", [0.0, 0.006, 0.2])
@pytest.mark.parametrize("memory", [0.0, 1e9])
@pytest.mark.parametrize("many", [0, close_rows._MANY])
def test_pairs_are_those_of_float64_distances(
    dtype: torch.dtype, share: float, memory: float, many: int, monkeypatch: pytest.MonkeyPatch, draw: Draw
) -> None:
    """The radius is just below the distance of one pair, which must stay outside."""
    monkeypatch.setattr(close_rows, "_MANY", many or N**2)  # where it is large, products in float64 decide
    monkeypatch.setattr(close_rows, "_GROUP", 256)
    monkeypatch.setattr(close_rows, "_BLOCK", 128)
    rows = torch.cat([draw.normal(N - 10, D), torch.zeros(10, D, dtype=torch.float64)]).to(dtype) + 2.0
    points = torch.cat([rows[::9], 30.0 * draw.normal(5, D).to(dtype)])
    close = make_close_rows(rows, points, memory)
    apart, to_points = squares(rows, rows), squares(rows, points)
    radius = float(apart.flatten().sort().values[int(share * N * N)]) * (1.0 - 1e-9)
    found = as_set(list(close.in_pool(radius)))
    assert found == {(i, j) for i, j in (apart < radius).nonzero().tolist() if i <= j}
    assert as_set(list(close.to_points(points, radius))) == set(map(tuple, (to_points < radius).nonzero().tolist()))
    more = list(close.in_pool(2.0 * radius))
    assert as_set([close.closer(more, radius)]) == found


@pytest.mark.parametrize("factor", [1e-12, 1.0, 1e12])
def test_squares_are_within_the_error(factor: float, dtype: torch.dtype, draw: Draw) -> None:
    rows = (factor * torch.cat([draw.normal(200, D) + 5.0, 100.0 * draw.normal(3, D)])).to(dtype)
    close = make_close_rows(rows, rows[:0], 0.0)
    apart, centred = squares(rows, rows), rows.double() - rows.double().mean(0)
    for pairs in close.in_pool(torch.inf):
        norms = centred.norm(dim=1)
        allowed = close.error(pairs.first, pairs.second)
        assert bool(((pairs.squares - apart[pairs.first, pairs.second]).abs() <= allowed).all())
        assert bool((allowed <= 1e-4 * (norms[pairs.first] + norms[pairs.second]).square()).all())


def test_bounds_of_the_distance_to_another_label(dtype: torch.dtype, draw: Draw) -> None:
    rows, labels = draw.normal(N, D).to(dtype), draw.integers(3, N)
    apart = squares(rows, rows).masked_fill(labels[:, None] == labels, torch.inf)
    bounds = make_close_rows(rows, rows[:0], 1e9).near_another_label(labels, torch.arange(0, N, 4), N // 10)
    to_sample = apart[:, ::4].amin(1)
    assert bool((bounds >= to_sample).all())
    torch.testing.assert_close(bounds, to_sample, rtol=1e-4, atol=1e-4)
    lowest = bounds.argsort()[: int(0.1 * N) + 1]
    torch.testing.assert_close(bounds[lowest], to_sample[lowest], rtol=1e-14, atol=0)
    assert make_close_rows(rows, rows[:0], 1e9).near_another_label(0 * labels, torch.arange(N), N // 10).isinf().all()


def test_a_pool_without_rows_has_no_pairs(draw: Draw) -> None:
    posterior = LastLayerLaplace(torch.zeros(2, D, dtype=torch.float64)).fit(draw.normal(10, D))
    for others in (draw.normal(2, D), draw.normal(0, D)):
        close = CloseRows(Pool(posterior, draw.normal(0, D)), others, 1e9)
        assert as_set([*close.in_pool(1.0), *close.to_points(others, 1.0), close.closer([], 1.0)]) == set()
