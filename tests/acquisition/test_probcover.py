"""ProbCover: the graph of the paper in full, and its radius by the definition of purity."""

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.rules import LINKS
from tests.acquisition.dense import distances, first_largest, inner
from tests.draws import Draw
from tests.problems import make_problem

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


@pytest.mark.parametrize("n_labelled", [0, 3, 37])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 5, B])
def test_picks_are_those_of_the_definition(n_classes: int, n_labelled: int, update_every: int) -> None:
    problem = make_problem(n_classes=n_classes)
    pool, given = torch.cat([problem.pool, problem.pool[:25]]), problem.eval_features[:n_labelled]
    result = select_batch(
        problem.posterior, pool, B, "probcover", update_every=update_every, labelled=given, generator=generator()
    )
    rows = inner(problem.posterior, pool)
    radius = largest_pure_radius(rows, n_classes)
    assert radius > 0
    close = distances(rows, rows) < radius
    covered = (distances(rows, inner(problem.posterior, given)) < radius).any(1)
    picks: list[int] = []
    values: list[float] = []
    for _ in range(B):
        degree = (close & ~covered).sum(1).double()
        picks.append(first_largest(degree, picks))
        values.append(float(degree[picks[-1]]))
        covered |= close[picks[-1]]
    assert values[0] > 1 or n_labelled > 3
    assert result.indices.tolist() == picks
    assert result.utilities.tolist() == values


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
    monkeypatch.setattr("lapal_ext.acquisition.probcover.TILE", 100)
    monkeypatch.setattr("lapal_ext.tiles.TILE_ROWS", 13)
    assert torch.equal(result(), expected)
