"""K-means: as good as scikit-learn's own, and the same for the same seed."""

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from lapal_ext.acquisition.clustering import cluster
from tests.draws import Draw


def cost(points: Tensor, clusters: Tensor) -> float:
    return sum(
        float((part - part.mean(0)).square().sum()) for part in (points[clusters == c] for c in clusters.unique())
    )


@pytest.mark.parametrize("n_clusters", [10, 60])
def test_the_cost_is_that_of_scikit_learn(n_clusters: int, draw: Draw) -> None:
    """On clusters of very different sizes, of which random first centres would miss the small ones."""
    sizes = torch.tensor([500, 200, 100, 50, 20, 10, 5, 5, 5, 5])
    points = 10.0 * draw.normal(10, 8).repeat_interleave(sizes, 0) + draw.normal(900, 8) + 1000.0
    ours = [cost(points, cluster(points, n_clusters, seed, needed_by="this test")) for seed in range(10)]
    theirs = [KMeans(n_clusters, n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(10)]
    assert sum(ours) <= 1.03 * sum(theirs)


def test_the_seed_decides(dtype: torch.dtype, draw: Draw) -> None:
    points = draw.normal(200, 5).to(dtype)
    results = [cluster(points, 7, seed, needed_by="this test") for seed in (3, 3, 4)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert set(results[0].tolist()) == set(range(7))


def test_points_that_coincide_share_a_cluster(draw: Draw) -> None:
    points = draw.normal(4, 5).repeat(10, 1)
    clusters = cluster(points, 6, 0, needed_by="this test")
    assert torch.equal(clusters, clusters[:4].repeat(10))
    assert len(clusters.unique()) == 4
    assert torch.equal(cluster(points[:0].new_ones(5, 3), 1, 0, needed_by="this test"), torch.zeros(5).long())
