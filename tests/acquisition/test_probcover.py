"""ProbCover: the graph of the paper in full, and its radius by the definition of purity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.rules import LINKS
from tests.acquisition.dense import distances, first_largest, inner
from tests.draws import Draw
from tests.problems import Problem, make_problem

B = 12


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def largest_pure_radius(rows: Tensor, n_clusters: int) -> float:
    """The largest distance between two rows at which at least 95 % of the open balls are pure."""
    labels = cluster(
        rows, n_clusters, choose_seed("probcover", LINKS["plugin"], len(rows), generator()), needed_by="this test"
    )
    apart = distances(rows, rows)
    best = 0.0
    for radius in apart.unique().tolist():
        pure = ((apart >= radius) | (labels[:, None] == labels)).all(1)
        if float(pure.double().mean()) >= 0.95:
            best = max(best, radius)
    return best


def greedy(rows: Tensor, labelled: Tensor, radius: float) -> tuple[list[int], list[float]]:
    """The picks and their degrees, from all distances in float64."""
    close = distances(rows, rows) < radius
    covered = (distances(rows, labelled) < radius).any(1)
    picks: list[int] = []
    values: list[float] = []
    for _ in range(B):
        degree = (close & ~covered).sum(1).double()
        picks.append(first_largest(degree, picks))
        values.append(float(degree[picks[-1]]))
        covered |= close[picks[-1]]
    return picks, values


@pytest.mark.parametrize("memory", [None, 64.0])
@pytest.mark.parametrize("n_labelled", [0, 3, 37])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 5, B])
def test_picks_are_those_of_the_definition(
    n_classes: int, n_labelled: int, update_every: int, memory: float | None
) -> None:
    problem = make_problem(n_classes=n_classes)
    pool, given = torch.cat([problem.pool, problem.pool[:25]]), problem.eval_features[:n_labelled]
    result = select_batch(
        problem.posterior,
        pool,
        B,
        "probcover",
        update_every=update_every,
        labelled=given,
        generator=generator(),
        memory=memory,
    )
    rows = inner(problem.posterior, pool)
    radius = largest_pure_radius(rows, n_classes)
    assert radius > 0
    picks, values = greedy(rows, inner(problem.posterior, given), radius)
    assert values[0] > 1 or n_labelled > 3
    assert result.indices.tolist() == picks
    assert result.utilities.tolist() == values


def lattice(problem: Problem) -> Tensor:
    return problem.pool.sign()


def tight_clusters(problem: Problem) -> Tensor:
    return problem.pool.round() + 1e-3 * problem.pool.flip(0)


def an_outlier(problem: Problem) -> Tensor:
    return torch.cat([1e3 * problem.pool[:1], problem.pool[1:]])


def off_centre(problem: Problem) -> Tensor:
    return problem.pool + 3e3


@pytest.mark.parametrize("memory", [None, 64.0])
@pytest.mark.parametrize("change", [lattice, tight_clusters, an_outlier, off_centre])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_of_products_does_not_matter(
    change: Callable[[Problem], Tensor], dtype: torch.dtype, memory: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many pairs are at the radius, up to the rounding of float32, or exactly. Balls are those of float64."""
    problem = make_problem(n_pool=400, dtype=dtype)
    pool = change(problem)
    posterior = LastLayerLaplace.fit_map(pool[:40], problem.labels[:40], 4, standardize=False)
    rows = inner(posterior, pool).double()
    labels = cluster(rows.to(dtype), 4, choose_seed("probcover", LINKS["plugin"], 400, generator()), needed_by="test")
    apart = distances(rows, rows)
    nearest = apart.masked_fill(labels[:, None] == labels, torch.inf).amin(1).sort().values
    expected = greedy(rows, rows[:5], float(nearest[int((1.0 - 0.95) * 400)]) * (1.0 - 1e-9))
    for block in (512, 48):  # the second with tiles that have runs of 64 numbers and tiles that have none
        monkeypatch.setattr("lapal_ext.acquisition.close_rows._BLOCK", block)
        result = select_batch(posterior, pool, B, "probcover", labelled=pool[:5], generator=generator(), memory=memory)
        assert (result.indices.tolist(), result.utilities.tolist()) == expected


def test_clusters_far_apart_are_covered_by_one_row_each(draw: Draw) -> None:
    corners = 50.0 * torch.eye(4, dtype=torch.float64)[torch.arange(40) % 4] + 0.1 * draw.normal(40, 4)
    posterior = LastLayerLaplace.fit_map(corners[:8], torch.arange(8) % 4, 4)
    result = select_batch(posterior, corners, 8, "probcover", generator=generator())
    assert sorted((result.indices[:4] % 4).tolist()) == [0, 1, 2, 3]
    assert float(result.utilities[:4].sum()) == 40.0
    assert not result.utilities[4:].any()


def test_a_pool_of_equal_rows_is_covered_by_the_first() -> None:
    problem = make_problem(n_pool=1)
    result = select_batch(problem.posterior, problem.pool.repeat(6, 1), 3, "probcover")
    assert result.indices.tolist() == [0, 1, 2]
    assert result.utilities.tolist() == [6.0, 0.0, 0.0]


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()

    def result() -> Tensor:
        return select_batch(problem.posterior, problem.pool, B, "probcover", generator=generator()).indices

    expected = result()
    for name in ("tiles.TILE_ROWS", "acquisition.close_rows._GROUP", "acquisition.close_rows._BLOCK"):
        monkeypatch.setattr(f"lapal_ext.{name}", 13)
    assert torch.equal(result(), expected)
