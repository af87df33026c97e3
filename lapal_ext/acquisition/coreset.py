"""Rows that leave no other row far from a labelled one."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.distances import labelled_features
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.spec import Setting, Spec


class CoresetScorer(PosteriorScorer):
    """CoreSet: k-centre greedy. Every pick is the row farthest from its nearest centre; that distance is its utility.

    The centres are the labelled rows, those absorbed in this selection, and the picks. Without any of them the first
    pick is the row farthest from the mean of the pool, which is no centre of later picks. Distances are Euclidean, of
    standardised features where the posterior standardises; the model plays no part. O(N D) per pick, in one pass over
    the pool by ``nearest_distance_``, and O(N L D) for L labelled rows at the start.

    Source: Sener and Savarese (2018), "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    arXiv 1708.00489, algorithm 1.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        standardization = setting.posterior.standardization
        self._scale = standardization.scale.expand_as(standardization.centre).contiguous()
        self._nearest = self._scale.new_full((len(self._pool),), torch.inf)  # [N], squared
        self._has_centre = len(labelled_features(setting)) > 0  # it refuses rows whose distances overflow
        if setting.labelled is not None:
            self._add_centres(setting.labelled.to(self._scale.dtype), self._nearest, torch.ones_like(self._taken))

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels)
        self._has_centre = True
        self._add_centres(self._pool.raw(picks), self._nearest, torch.ones_like(self._taken))

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        nearest, centres = self._nearest.clone(), self._scale.new_empty(0, len(self._scale))
        picks: list[Tensor] = []
        squares: list[Tensor] = []
        for number in range(count):
            if number == 0 and not self._has_centre:
                mean = self._pool.mean().to(nearest.dtype)[None]
                row, square = self._add_centres(mean, nearest.clone(), self._taken)
            else:
                row, square = self._add_centres(centres, nearest, self._taken)
            pick, square = self._pool.shard.best_of_candidates(row, square, self._taken)
            centres = self._pool.raw(pick)
            picks.append(pick)
            squares.append(square)
        return torch.cat(picks), torch.cat(squares).sqrt()

    def _add_centres(
        self,
        centres: Tensor,  # [k, D] raw features
        nearest: Tensor,  # [N] squared distances, changed in place
        taken: Tensor,  # [N] bool, the pick is set in place
    ) -> tuple[Tensor, Tensor]:  # [] int64, []
        return ops.nearest_distance_.unchecked(self._pool.storage, centres, self._scale, nearest, taken)


SPEC = Spec(CoresetScorer, batch_targets=None)
