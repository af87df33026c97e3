"""Rows whose neighbourhoods cover the most rows that no labelled row covers yet."""

import math

import torch
from torch import Tensor

from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.distances import TILE, labelled_features, nearest_distance, squared_distances
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.pool.pool import Pool
from lapal_ext.rules import EXACT_LINKS

_PURITY = 0.95  # share of the balls that hold a single pseudo-label, which defines the radius


class ProbCoverScorer(PosteriorScorer):
    """ProbCover: every pick is the row with the most uncovered rows within the radius; their number is its utility.

    A row is covered if a labelled row, a row absorbed in this selection or a pick is closer than the radius. The radius
    is the paper's: the largest for which 95 % of the balls around rows are pure, that is, hold rows of a single
    pseudo-label. The pseudo-labels are k-means clusters, as many as there are classes (needs scikit-learn). This radius
    is the 5 % quantile of the distances from a row to the nearest row of another cluster.

    Distances are Euclidean, of standardised features if the posterior standardises; the model is not used. The graph of
    the paper is never stored: its degrees are counted in tiles, O(N^2 D) for a whole selection.

    Source: Yehuda et al. (2022), "Active Learning Through a Covering Lens", arXiv 2205.11320, algorithm 1 and
    section 3.2.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._radius = _pure_radius(self._pool, self._posterior.num_classes, setting.seed)
        self._covered = torch.zeros_like(self._taken)
        self._degree = _count_closer(self._pool, torch.arange(len(self._pool), device=self._taken.device), self._radius)
        centres = labelled_features(setting)
        if len(centres) > 0:
            self._cover(centres, self._covered, self._degree)

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels)
        self._cover(self._pool.standardized(picks), self._covered, self._degree)

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        covered, degree = self._covered.clone(), self._degree.clone()
        picks: list[Tensor] = []
        utilities: list[Tensor] = []
        for number in range(count):
            if number > 0:
                self._cover(self._pool.standardized(picks[-1]), covered, degree)
            pick, utility = best_first(degree, self._taken, 1, self._pool.shard)
            picks.append(pick)
            utilities.append(utility)
        return torch.cat(picks), torch.cat(utilities).to(self._posterior.mean.dtype)

    def _cover(
        self,
        centres: Tensor,  # [m, D], standardised
        covered: Tensor,  # [N] bool, changed in place
        degree: Tensor,  # [N] int64, changed in place
    ) -> None:
        fresh = (nearest_distance(self._pool, centres) < self._radius) & ~covered
        degree -= _count_closer(self._pool, fresh.nonzero()[:, 0], self._radius)
        covered |= fresh


def _count_closer(
    pool: Pool,
    among: Tensor,  # [m] int64
    radius: float,
) -> Tensor:  # [N] int64
    """For every row, how many of the rows ``among`` are closer than the radius."""
    counts = torch.zeros(len(pool), dtype=torch.int64, device=among.device)
    for rows, tile in pool.standardized_tiles():
        for block in among.split(max(1, TILE // len(tile))):
            squares = squared_distances(tile.double(), pool.standardized(block).double())
            counts[rows] += (squares < radius * radius).sum(1)
    return counts


def _pure_radius(pool: Pool, n_clusters: int, seed: int) -> float:
    """Largest radius with which a share ``_PURITY`` of all balls is pure; infinite if there is only one cluster."""
    if len(pool) == 0:
        return 0.0
    everything = torch.arange(len(pool), device=pool.storage.device)
    points = pool.standardized(everything)
    clusters = cluster(points, min(n_clusters, len(pool)), seed, needed_by="acquisition 'probcover'")
    nearest = torch.full((len(pool),), torch.inf, dtype=torch.float64, device=everything.device)
    for rows, tile in pool.standardized_tiles():
        for block in everything.split(max(1, TILE // len(tile))):
            squares = squared_distances(tile.double(), pool.standardized(block).double())
            squares.masked_fill_(clusters[rows, None] == clusters[block], torch.inf)
            nearest[rows] = torch.minimum(nearest[rows], squares.amin(1))
    impure = int((1.0 - _PURITY) * len(pool))
    # A ball is open, and one pair has exactly this distance: rounding must not put it inside.
    return math.sqrt(float(nearest.sort().values[impure])) * (1.0 - 1e-9)


SPEC = Spec(ProbCoverScorer, drawing_links=EXACT_LINKS, needs_all_rows=True, batch_targets=None)
