"""Rows whose Fisher information lowers the expected error bound of the whole pool most."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.likelihood import curvature_weight
from lapal_ext.posterior.precision import add_observations, symmetric
from lapal_ext.posterior.updating import check_resolution, check_variance
from lapal_ext.rules import UpdateRule
from lapal_ext.validation.tensors import check_overflow

_OVERSAMPLING = 2  # rows that the forward pass picks per row that the backward pass keeps
_TIE = 1e-9  # relative: removals of nearly equal cost tie, such as those of copies, and the last pick is removed


class _Objective(NamedTuple):
    """tr(A^-1 F) under the current model, and the terms of the gain of every row of the pool."""

    curvature: Tensor  # [N], s
    fisher: Tensor  # [D, D], F
    h: Tensor  # [N], phi^T A^-1 phi
    q: Tensor  # [N], phi^T A^-1 F A^-1 phi


class BaitScorer(PosteriorScorer):
    """BAIT with the Fisher information of a binary surrogate: greedy descent on tr(A^-1 F).

    A row has the rank-one information s phi phi^T, s = p_max (1 - p_max), in place of the C-class one (rank C - 1): the
    surrogate is the binary problem whether the likeliest class is correct. A is the precision of the posterior plus the
    information of the picks. F is the mean of s_n phi_n phi_n^T over the rows that may be picked, including those
    already picked. The gain of a row, its utility, is s q / (1 + s h); ties go to the lowest row.

    ``bait`` picks one row after another. ``bait_forward_backward`` first picks twice as many rows in this way. Then it
    removes the row whose removal increases tr(A^-1 F) least, by s q / (1 - s h), until the requested number is left.
    These keep their forward order and forward gains.

    After labels have been absorbed, A, F and s are those of the updated model. Computing them takes O(N D^2 + D^3) once
    per group of picks; a pick takes O(N D + D^2).

    Source: Ash et al. (2021), "Gone Fishing: Neural Active Learning with Fisher Embeddings", arXiv 2106.09675,
    objective (3) and algorithm 1; the surrogate and the rank-one recursions are ours.
    """

    def __init__(self, setting: Setting, *, backward: bool) -> None:
        super().__init__(setting)
        self._backward = backward
        self._objective: _Objective | None = None

    def restart(self) -> None:
        """See ``Scorer``."""
        super().restart()
        self._objective = None

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels, rule)
        self._objective = None

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        if self._objective is None:
            self._objective = self._measure()
        if not self._backward:
            return self._forward(self._objective, count)
        n_free = int(self._pool.shard.add((~self._taken).sum()))
        picks, gains = self._forward(self._objective, min(_OVERSAMPLING * count, n_free))
        kept = self._remove(self._objective, picks, len(picks) - count)
        self.release(picks[~kept])
        return picks[kept], gains[kept]

    def _measure(self) -> _Objective:
        posterior, pool = self._posterior, self._pool
        mean = posterior.mean
        curvature = mean.new_empty(len(pool))
        fisher = mean.new_zeros(mean.shape[1], mean.shape[1])
        for rows, x in pool.standardized_tiles():
            curvature[rows] = curvature_weight(ops.inner_products(x, mean), "categorical")
            fisher = add_observations(fisher, x, curvature[rows])
        fisher = pool.shard.add(fisher) / max(pool.shard.total, 1)
        covariance = posterior.covariance  # symmetric, as is the Fisher matrix: rows are columns
        sandwich = symmetric(ops.inner_products(ops.inner_products(covariance, fisher), covariance))
        h, q = torch.empty_like(curvature), torch.empty_like(curvature)
        for rows, x in pool.standardized_tiles():
            h[rows] = ops.predictive_variance(x, covariance)
            check_variance(h[rows], x, covariance, "pool", rows.start)
            q[rows] = ops.predictive_variance(x, sandwich)
        check_overflow("pool", curvature, q)
        every_row = torch.arange(len(pool), device=h.device)
        check_resolution(curvature, curvature / (1.0 + curvature * h), "pool", every_row)
        return _Objective(curvature, fisher, h, q)

    def _forward(self, objective: _Objective, count: int) -> tuple[Tensor, Tensor]:
        """Greedy picks. A^-1 is the covariance minus sum_t beta_t u_t u_t^T; only u_t and beta_t are stored."""
        s, fisher, shard = objective.curvature, objective.fisher, self._pool.shard
        h, q = objective.h.clone(), objective.q.clone()
        zero = h.new_zeros(())
        covariance, standardization = self._posterior.covariance, self._posterior.standardization
        directions, betas = covariance.new_zeros(count, len(covariance)), covariance.new_zeros(count)

        def shrunk(
            vector: Tensor,  # [D]
            t: int,
        ) -> Tensor:  # [D]
            """A^-1 times a vector, after t picks."""
            return covariance @ vector - (betas[:t] * (directions[:t] @ vector)) @ directions[:t]

        weights, offsets = covariance.new_zeros(2, self._pool.storage.shape[1]), covariance.new_zeros(2)
        fisher_norm = beta = zero
        picks, gains = [], []
        for t in range(count):
            index, gain = ops.bait_step_.unchecked(
                self._pool.storage,
                weights[0],
                offsets[0],
                weights[1],
                offsets[1],
                fisher_norm,
                beta,
                s,
                h,
                q,
                self._taken,
            )
            pick, gain = shard.best_of_candidates(index, gain, self._taken)
            picks.append(pick)
            gains.append(gain)
            phi, weight = self._pool.standardized(pick)[0], shard.gather(s, pick)[0]
            u = shrunk(phi, t)
            beta = weight / (1.0 + weight * (phi @ u))
            along = fisher @ u
            weights, offsets = standardization.raw(torch.stack([u, shrunk(along, t)]))
            fisher_norm = u @ along
            directions[t], betas[t] = u, beta
        return torch.cat(picks), torch.cat(gains)

    def _remove(
        self,
        objective: _Objective,
        picks: Tensor,  # [m] int64
        count: int,
    ) -> Tensor:  # [m] bool, False where a pick was removed
        """The backward pass, in float64, on m x m matrices of the picks instead of the pool.

        Let G = Phi A^-1 Phi^T and Q = Phi A^-1 F A^-1 Phi^T for the picks. Removing the information of row r changes
        them as below with beta = s / (1 - s G_rr), and adding it does with beta = -s / (1 + s G_rr):
            G += beta g g^T        Q += beta (g q^T + q g^T) + beta^2 Q_rr g g^T,    g = G_:r, q = Q_:r.
        """
        phi = self._pool.standardized(picks).double()
        s = self._pool.shard.gather(objective.curvature, picks).double()
        columns = phi @ self._posterior.covariance.double()
        gram, gain = columns @ phi.T, columns @ objective.fisher.double() @ columns.T
        for r in range(len(picks)):
            _exchange(gram, gain, r, -s[r] / (1.0 + s[r] * gram[r, r]))
        kept = torch.ones_like(picks, dtype=torch.bool)
        for _ in range(count):
            rise = (s * gain.diagonal() / (1.0 - s * gram.diagonal())).masked_fill(~kept, torch.inf)
            if bool(rise.isnan().any()):
                check_overflow("pool", rise)
            r = int((rise <= rise.amin() * (1.0 + _TIE)).nonzero()[-1])
            kept[r] = False
            _exchange(gram, gain, r, s[r] / (1.0 - s[r] * gram[r, r]))
        return kept


def _exchange(
    gram: Tensor,  # [m, m], changed in place
    gain: Tensor,  # [m, m], changed in place
    r: int,
    beta: Tensor,  # []
) -> None:
    g, q = gram[:, r].clone(), gain[:, r].clone()
    gain += beta * (torch.outer(g, q) + torch.outer(q, g)) + beta.square() * q[r] * torch.outer(g, g)
    gram += beta * torch.outer(g, g)


SPEC = Spec(partial(BaitScorer, backward=False), uses_variance=True, batch_targets=None)
FORWARD_BACKWARD_SPEC = Spec(partial(BaitScorer, backward=True), uses_variance=True, batch_targets=None)
