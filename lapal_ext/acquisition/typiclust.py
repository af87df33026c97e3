"""The most typical row of each cluster that has no label yet."""

import torch
from torch import Tensor

from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.distances import TILE, labelled_features, squared_distances
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.rules import EXACT_LINKS, UpdateRule

_MAX_CLUSTERS = 500
_NEIGHBOURS = 20
_SMALL = 5  # points; clusters of at most this size come after all others


class TypiClustScorer(PosteriorScorer):
    """TypiClust: k-means, then the row with the closest neighbours from one uncovered cluster after another.

    The labelled rows and the pool are clustered together into min(labelled + picks, 500) clusters. Rows absorbed in
    this selection count as labelled. Every pick comes from the cluster with the fewest labelled rows and picks; ties go
    to the largest cluster, and clusters of at most 5 points come after all others. The pick is the most typical free
    row of the cluster: its mean distance to its 20 nearest neighbours in the cluster is smallest. Its utility is minus
    that distance; the paper's inverse would be infinite for copies. Needs scikit-learn.

    Distances are Euclidean, of standardised features if the posterior standardises; the model is not used. Every group
    of picks needs a new clustering, so a small ``update_every`` is slow.

    Source: Hacohen et al. (2022), "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets",
    arXiv 2202.02794, algorithm 1 with k-means; the limits are those of the published code.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._labelled, self._seed = labelled_features(setting), setting.seed
        self._absorbed = self._taken.new_zeros(0, dtype=torch.int64)

    def restart(self) -> None:
        """See ``Scorer``."""
        super().restart()
        self._absorbed = self._absorbed[:0]

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels, rule)
        self._absorbed = torch.cat([self._absorbed, picks])

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        n_rows = len(self._pool)
        everything = torch.arange(n_rows, device=self._taken.device)
        points = torch.cat([self._pool.standardized(everything), self._labelled])
        n_clusters = min(len(self._labelled) + len(self._absorbed) + count, _MAX_CLUSTERS, len(points))
        clusters = cluster(points, n_clusters, self._seed, needed_by="acquisition 'typiclust'")
        sizes = clusters.bincount(minlength=n_clusters).tolist()
        known = torch.cat([clusters[n_rows:], clusters[self._absorbed]]).bincount(minlength=n_clusters).tolist()
        free = clusters[:n_rows][~self._taken].bincount(minlength=n_clusters).tolist()
        typicality: dict[int, tuple[Tensor, Tensor]] = {}
        picks, utilities = [], []
        for _ in range(count):
            left = [c for c in range(n_clusters) if free[c] > 0]
            chosen = min(left, key=lambda c: (sizes[c] <= _SMALL, known[c], -sizes[c], c))
            if chosen not in typicality:
                typicality[chosen] = self._typicality(points, clusters == chosen)
            rows, values = typicality[chosen]
            values = values.masked_fill(self._taken[rows], -torch.inf)
            place = (values == values.amax()).nonzero()[0]  # the lowest
            self._taken[rows[place]] = True
            known[chosen] += 1
            free[chosen] -= 1
            picks.append(rows[place])
            utilities.append(values[place])
        return torch.cat(picks), torch.cat(utilities)

    def _typicality(
        self,
        points: Tensor,  # [N + L, D]
        members: Tensor,  # [N + L] bool
    ) -> tuple[Tensor, Tensor]:  # [k] int64, [k]
        """The members in the pool, and minus their mean distance to the nearest members.

        A matrix product finds the neighbours; their distances are summed in one order, so that copies tie.
        """
        numbers = members.nonzero()[:, 0]
        rows = numbers[numbers < len(self._pool)]
        inside = points[numbers].double()
        k = min(_NEIGHBOURS, len(numbers) - 1)
        result = points.new_zeros(len(rows))
        if k == 0:
            return rows, result
        size = max(1, TILE // max(len(numbers), k * points.shape[1]))
        for block in torch.arange(len(rows), device=points.device).split(size):
            squares = squared_distances(inside[block], inside)
            squares[torch.arange(len(block), device=points.device), block] = torch.inf
            nearest = squares.topk(k, dim=1, largest=False).indices
            distances = (inside[nearest] - inside[block, None]).square().sum(2).sqrt()
            result[block] = -distances.sort(dim=1).values.mean(1).to(points.dtype)
        return rows, result


SPEC = Spec(TypiClustScorer, drawing_links=EXACT_LINKS, needs_all_rows=True, batch_targets=None)
