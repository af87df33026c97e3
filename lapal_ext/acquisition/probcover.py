"""Rows whose neighbourhoods cover the most rows that no labelled row covers yet."""

import math

import torch
from torch import Tensor

from lapal_ext.acquisition.ball_graph import BallGraph
from lapal_ext.acquisition.close_rows import CloseRows, Pairs
from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.distances import labelled_features
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.pool.pool import Pool
from lapal_ext.rules import EXACT_LINKS

_PURITY = 0.95  # share of the balls that hold a single pseudo-label, which defines the radius
_SAMPLE = 32  # one in so many rows gives an upper bound of the radius
_BYTES_OF_PAIR = 96  # while the graph is made


class ProbCoverScorer(PosteriorScorer):
    """ProbCover: every pick is the row with the most uncovered rows within the radius; their number is its utility.

    A row is covered if a labelled row, a row absorbed in this selection or a pick is closer than the radius. The radius
    is the paper's: the largest for which 95 % of the balls around rows are pure, that is, hold rows of a single
    pseudo-label. The pseudo-labels are k-means clusters, as many as there are classes (needs scikit-learn). This radius
    is the 5 % quantile of the distances from a row to the nearest row of another cluster.

    Distances are Euclidean, of standardised features if the posterior standardises; the model is not used. One pass
    over the pairs of rows, O(N^2 D / 2), gives the radius and the graph of the paper, which is kept if it fits into
    the memory for kernel values. If not, a second pass counts its degrees, and a row's neighbours are computed again
    when it is covered, O(N D) for each row.

    Source: Yehuda et al. (2022), "Active Learning Through a Covering Lens", arXiv 2205.11320, algorithm 1 and
    section 3.2.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        known, memory = labelled_features(setting), setting.kernel_memory / 2
        close = CloseRows(self._pool, known, memory)
        room = int(memory / _BYTES_OF_PAIR)
        squared, pairs = pure_radius(self._pool, close, self._posterior.num_classes, setting.seed, room)
        self._graph = BallGraph(self._pool, close, squared, pairs)
        self._covered = torch.zeros_like(self._taken)
        self._degree = self._graph.degrees()
        self._cover(self._graph.near(known), self._covered, self._degree)

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels)
        self._cover(self._graph.counts(picks) > 0, self._covered, self._degree)

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        covered, degree = self._covered.clone(), self._degree.clone()
        picks: list[Tensor] = []
        utilities: list[Tensor] = []
        for number in range(count):
            if number > 0:
                self._cover(self._graph.counts(picks[-1]) > 0, covered, degree)
            free = degree.masked_fill(self._taken, -1)
            pick = (free == free.amax()).nonzero()[0]  # the lowest
            self._taken[pick] = True
            picks.append(pick)
            utilities.append(degree[pick])
        return torch.cat(picks), torch.cat(utilities).to(self._posterior.mean.dtype)

    def _cover(
        self,
        rows: Tensor,  # [N] bool
        covered: Tensor,  # [N] bool, changed in place
        degree: Tensor,  # [N] int64, changed in place
    ) -> None:
        degree -= self._graph.counts((rows & ~covered).nonzero()[:, 0])
        covered |= rows


def pure_radius(
    pool: Pool, close: CloseRows, n_clusters: int, seed: int, room: int
) -> tuple[float, list[Pairs] | None]:
    """The square of the largest radius with which a share ``_PURITY`` of all balls is pure, and pairs of rows.

    It is infinite if there is only one cluster. The pairs are all that are closer than the radius, and some that are
    not; None if they are more than ``room``.

    A sample of the rows gives an upper bound of the radius. One pass finds all pairs within the bound. Those of rows in
    different clusters give the radius itself; where their errors matter, their distances are computed in float64.
    """
    everything = torch.arange(len(pool), device=pool.storage.device)
    if len(pool) == 0:
        return 0.0, []
    clusters = cluster(
        pool.standardized(everything), min(n_clusters, len(pool)), seed, needed_by="acquisition 'probcover'"
    )
    first = everything.new_full((n_clusters,), len(pool)).scatter_reduce_(0, clusters, everything, "amin")
    sample = torch.cat([everything[::_SAMPLE], first[first < len(pool)]]).unique()
    impure = int((1.0 - _PURITY) * len(pool))
    nearest = close.near_another_label(clusters, sample, impure)
    kept: list[Pairs] | None = []
    mixed: list[Pairs] = []
    count = n_mixed = 0
    for pairs in close.in_pool(_smallest(nearest, impure)):
        mixed.append(pairs.where(clusters[pairs.first] != clusters[pairs.second]))
        n_mixed += len(mixed[-1].squares)
        if n_mixed > len(pool):  # most of them are no longer candidates
            mixed = [_candidates(close, mixed, nearest, impure)]
            n_mixed = 0
        count += len(pairs.squares)
        if count > room:
            kept = None
        elif kept is not None:
            kept.append(pairs)
    last = _candidates(close, mixed, nearest, impure)
    _lower(nearest, last, close.exact(last.first, last.second))
    # A ball is open, and one pair has exactly this distance: rounding must not put it inside.
    return (math.sqrt(_smallest(nearest, impure)) * (1.0 - 1e-9)) ** 2, kept


def _candidates(
    close: CloseRows,
    mixed: list[Pairs],  # of rows in different clusters
    nearest: Tensor,  # [N] float64, lowered to upper bounds from the pairs
    impure: int,
) -> Pairs:
    """The pairs that may give one of the smallest distances."""
    pairs = Pairs(*(torch.cat(values) for values in zip(*mixed, strict=True)))
    error = close.error(pairs.first, pairs.second)
    _lower(nearest, pairs, pairs.squares + error)
    return pairs.where(pairs.squares - error <= _smallest(nearest, impure))


def _lower(
    nearest: Tensor,  # [N] float64, changed in place
    pairs: Pairs,  # [k]
    squares: Tensor,  # [k] float64
) -> None:
    for rows in (pairs.first, pairs.second):
        nearest.scatter_reduce_(0, rows, squares, "amin")


def _smallest(
    values: Tensor,  # [N]
    place: int,
) -> float:
    """The number at a place of the ascending order."""
    return float(values.kthvalue(place + 1).values)


SPEC = Spec(ProbCoverScorer, drawing_links=EXACT_LINKS, needs_all_rows=True, batch_targets=None)
