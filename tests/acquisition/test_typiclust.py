"""TypiClust: the package's own clusters, and every choice among them by its definition."""

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.acquisition import typiclust
from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.rules import LINKS
from tests.acquisition.dense import distances, first_largest, inner
from tests.draws import Draw
from tests.problems import make_problem

B = 7


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(6)


def by_definition(rows: Tensor, labelled: Tensor, update_every: int) -> tuple[list[int], list[float]]:
    seed = choose_seed("typiclust", LINKS["plugin"], len(rows), generator())
    picks: list[int] = []
    values: list[float] = []
    while len(picks) < B:
        count = min(update_every, B - len(picks))
        points = torch.cat([rows, labelled])
        n_clusters = min(len(labelled) + len(picks) + count, 500, len(points))
        clusters = cluster(points, n_clusters, seed, needed_by="this test").tolist()
        known = [clusters[pick] for pick in picks] + clusters[len(rows) :]
        for _ in range(count):
            left = {clusters[row] for row in range(len(rows)) if row not in picks}
            order = [(clusters.count(c) <= 5, known.count(c), -clusters.count(c), c) for c in left]
            chosen = min(order)[3]
            members = [point for point in range(len(points)) if clusters[point] == chosen]
            typicality = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
            for member in members:
                if member < len(rows):
                    others = points[[other for other in members if other != member]]
                    nearest = distances(points[member : member + 1], others)[0].sort().values[:20]
                    typicality[member] = -nearest.mean() if len(nearest) else 0.0
            outside = [row for row in range(len(rows)) if clusters[row] != chosen]
            picks.append(first_largest(typicality, picks + outside))
            values.append(float(typicality[picks[-1]]))
            known.append(chosen)
    return picks, values


@pytest.mark.parametrize("n_labelled", [0, 4, 37])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 3, B])
def test_picks_are_those_of_the_definition(n_classes: int, n_labelled: int, update_every: int) -> None:
    problem = make_problem(n_classes=n_classes, n_pool=100)
    pool, given = torch.cat([problem.pool, problem.pool[:40]]), problem.eval_features[:n_labelled]
    result = select_batch(
        problem.posterior, pool, B, "typiclust", update_every=update_every, labelled=given, generator=generator()
    )
    picks, values = by_definition(inner(problem.posterior, pool), inner(problem.posterior, given), update_every)
    assert result.indices.tolist() == picks
    torch.testing.assert_close(result.utilities, torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_clusters_with_labels_come_after_those_without(draw: Draw) -> None:
    corners = 50.0 * torch.eye(4, dtype=torch.float64)[torch.arange(80) % 4] + draw.normal(80, 4)
    posterior = LastLayerLaplace.fit_map(corners[:8], torch.arange(8) % 4, 4)
    result = select_batch(posterior, corners[8:], 2, "typiclust", labelled=corners[[0, 1]], generator=generator())
    assert sorted((result.indices % 4).tolist()) == [2, 3]


def test_copies_tie_and_the_lowest_is_picked(dtype: torch.dtype) -> None:
    problem = make_problem(n_pool=50, dtype=dtype)
    for seed in range(5):
        result = select_batch(
            problem.posterior,
            problem.pool.repeat(2, 1),
            3,
            "typiclust",
            None,
            update_every=3,
            generator=torch.Generator().manual_seed(seed),
        )
        assert bool((result.indices < 50).all())


def test_no_more_clusters_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def count_clusters(points: Tensor, n_clusters: int, seed: int, *, needed_by: str) -> Tensor:
        asked.append(n_clusters)
        return cluster(points, n_clusters, seed, needed_by=needed_by)

    monkeypatch.setattr(typiclust, "cluster", count_clusters)
    problem = make_problem(n_pool=600)
    for labelled in (None, problem.pool[:590]):
        select_batch(problem.posterior, problem.pool, 5, "typiclust", None, update_every=5, labelled=labelled)
    assert asked == [5, 500]


def test_tiles_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()

    def result() -> Tensor:
        return select_batch(problem.posterior, problem.pool, B, "typiclust", generator=generator()).indices

    expected = result()
    monkeypatch.setattr("lapal_ext.acquisition.typiclust.TILE", 100)
    assert torch.equal(result(), expected)
