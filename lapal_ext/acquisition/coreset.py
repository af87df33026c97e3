"""Rows that leave no other row far from a labelled one."""

import torch
from torch import Tensor

from lapal_ext.acquisition.distances import labelled_features, nearest_distance
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.acquisition.spec import Setting, Spec


class CoresetScorer(PosteriorScorer):
    """CoreSet: k-centre greedy. Every pick is the row farthest from its nearest centre; that distance is its utility.

    The centres are the labelled rows, those absorbed in this selection, and the picks. Without labelled rows the mean
    of the pool stands in for them. Distances are Euclidean, of standardised features where the posterior standardises;
    the model plays no part. O(N D) per pick, O(N L D) for L labelled rows at the start.

    Source: Sener and Savarese (2018), "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    arXiv 1708.00489, algorithm 1.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        centres = labelled_features(setting)
        if len(centres) == 0:
            centres = self._pool.mean()
        self._distance = nearest_distance(self._pool, centres)

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels)
        self._distance = torch.minimum(self._distance, nearest_distance(self._pool, self._pool.standardized(picks)))

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        distance = self._distance
        picks: list[Tensor] = []
        utilities: list[Tensor] = []
        for number in range(count):
            if number > 0:
                distance = torch.minimum(distance, nearest_distance(self._pool, self._pool.standardized(picks[-1])))
            pick, utility = best_first(distance, self._taken, 1, self._pool.shard)
            picks.append(pick)
            utilities.append(utility)
        return torch.cat(picks), torch.cat(utilities).to(self._posterior.mean.dtype)


SPEC = Spec(CoresetScorer, batch_targets=None)
