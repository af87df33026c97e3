"""Rows whose gradient embeddings are large and far apart, by k-means++."""

from collections import defaultdict
from typing import TypeAlias

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.latent_scorer import LatentScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.rules import EXACT_LINKS, UpdateRule
from lapal_ext.validation.tensors import check_overflow

_SAME_POINT = 16.0  # as in badge_step_, eps of the norms: a smaller distance is rounding
_CENTRES = 256  # centres that a tile of the pool is compared with at a time

_Centres: TypeAlias = defaultdict[float, list[int]]  # by |phi|^2


class BadgeScorer(LatentScorer):
    """BADGE: k-means++ on the gradient embeddings (e_1 - p) (x) phi under the current model.

    The centres are the rows that have been absorbed in this selection, and then the picks. Each pick is drawn in
    proportion to its squared distance from the nearest centre, which is its utility. Without a centre the row with the
    largest gradient is the first pick, as in the published code. After a label, all embeddings are those of the updated
    model, including those of the centres.

    A copy of a centre is never drawn, nor is a row that is taken. If no other row is left, the pick is the lowest free
    row, with utility zero. [N, C D] is never formed: O(N (D + C)) per pick, and O(N (D + C) t) once per group of picks
    to compute the distances to t centres again.

    Source: Ash et al. (2020), "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds",
    arXiv 1906.03671.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, with_variance=False)
        self._seed = setting.seed
        self._squares = self._pool.norms().square()
        self._centres = self._taken.new_zeros(0, dtype=torch.int64)

    def restart(self) -> None:
        """See ``Scorer``."""
        super().restart()
        self._centres = self._centres[:0]

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels, rule)
        self._centres = torch.cat([self._centres, picks])

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        self._bring_up_to_date()
        gradient = self._gradient()
        norms = gradient.square().sum(1) * self._squares
        check_overflow("pool", norms)  # a weight of NaN makes the draw impossible
        known, shard = self._centres, self._pool.shard
        centres: _Centres = defaultdict(list)
        for pick, square in zip(known.tolist(), shard.gather(self._squares, known).tolist(), strict=True):
            centres[square].append(pick)
        draws = thresholds(self._seed, len(known) + count, norms.dtype).to(norms.device)
        distance = self._distance(gradient, norms)
        distance[self._taken] = 0.0
        picks, utilities = [], []
        last = known[-1:]
        for threshold in draws[len(known) :]:
            if len(last) > 0:
                last, utility = self._draw(last, centres, gradient, norms, distance, threshold)
            else:
                last, utility = best_first(norms, self._taken, 1, shard)
            centres[float(shard.gather(self._squares, last))].append(int(last))
            picks.append(last)
            utilities.append(utility)
        return torch.cat(picks), torch.cat(utilities)

    def _gradient(self) -> Tensor:  # [N, C]
        """e_1 - p of every row, in class-major memory, the fastest layout for a draw."""
        p = self._predictive(self._logits, self._variance)
        winner = p.max(1, keepdim=True).indices
        others = p.scatter(1, winner, 0.0)
        return (-others).scatter_(1, winner, others.sum(1, keepdim=True)).T.contiguous().T

    def _distance(
        self,
        gradient: Tensor,  # [N, C]
        norms: Tensor,  # [N]
    ) -> Tensor:  # [N]
        """Squared distance to the nearest absorbed centre, without the last one, which the first draw adds."""
        distance = torch.full_like(norms, torch.inf)
        rounding = _SAME_POINT * torch.finfo(norms.dtype).eps
        gather = self._pool.shard.gather
        for start in range(0, len(self._centres) - 1, _CENTRES):
            centres = self._centres[start : min(start + _CENTRES, len(self._centres) - 1)]
            points, centre_gradient = self._pool.standardized(centres), gather(gradient, centres)
            centre_norms = gather(norms, centres)
            for rows, tile in self._pool.standardized_tiles():
                product = (gradient[rows] @ centre_gradient.T) * (tile @ points.T)
                total = norms[rows, None] + centre_norms
                fresh = total - 2.0 * product
                fresh = fresh.masked_fill_(fresh <= rounding * total, 0.0).amin(1)
                distance[rows] = torch.minimum(distance[rows], fresh)
        return distance

    def _draw(
        self,
        last: Tensor,  # [1] int64, the last centre
        centres: _Centres,  # ``distance`` includes all but the last
        gradient: Tensor,  # [N, C]
        norms: Tensor,  # [N]
        distance: Tensor,  # [N], changed in place
        threshold: Tensor,  # []
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1]
        pool, gather = self._pool, self._pool.shard.gather
        weights, offsets = self._standardization.products(pool.raw(last))
        g, norm = gather(gradient, last)[0], gather(norms, last)[0]
        while True:
            row = ops.badge_step_.unchecked(
                pool.storage, weights[0], offsets[0], gradient, g, norms, norm, threshold, distance
            )
            pick = pool.shard.draw(row, distance, threshold)
            if int(pick) < 0:
                return best_first(torch.zeros_like(norms), self._taken, 1, pool.shard)
            if not self._is_copy(pick, centres):
                self.withhold(pick)
                return pick, gather(distance, pick)
            # The product of uncentred features has more rounding than its norms suggest, so that a copy may be drawn.
            distance[(pool.storage == gather(pool.storage, pick)).all(1)] = 0.0

    def _is_copy(self, pick: Tensor, centres: _Centres) -> bool:
        """Whether a row equals one of the centres; equal rows have equal norms, to the bit."""
        gather = self._pool.shard.gather
        alike = centres.get(float(gather(self._squares, pick)), [])
        if not alike:
            return False
        rows = gather(self._pool.storage, torch.cat([pick, pick.new_tensor(alike)]))
        return bool((rows[1:] == rows[0]).all(1).any())


def thresholds(seed: int, count: int, dtype: torch.dtype) -> Tensor:  # [count]
    """Uniform draws in [0, 1), one per row of a selection in pick order. A longer list begins with the shorter one."""
    return torch.rand(count, dtype=dtype, generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu")


SPEC = Spec(BadgeScorer, drawing_links=EXACT_LINKS, uses_probabilities=True, keeps_logits=True, batch_targets=None)
