"""The base class of scorers that keep the logits and variances of a pool up to date."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.spec import Setting
from lapal_ext.posterior.updating import coefficients
from lapal_ext.rules import UpdateRule


class LatentScorer:
    """Logits and variances of the pool under a growing set of labels; the covariance is never rebuilt.

    With Sigma the posterior's covariance, the direction of pick t is
        u_t = Sigma phi_t - sum_{s<t} beta_s u_s (u_s . phi_t),  O(D^2 + D t),
    and absorbing it changes every row by its column c = Phi u_t: logits += c g_t^T, v -= beta_t c^2. One label takes
    one pass over the pool by ``selection_step_``; several at once take one matrix product. A subclass adds ``pick``.
    What else changes with labels or picks, it sets in its constructor and again in ``restart``.
    """

    def __init__(self, setting: Setting, *, with_variance: bool) -> None:
        self._posterior, self._pool, self._kappa = setting.posterior, setting.pool, setting.link.kappa
        self._standardization = setting.posterior.standardization
        self._with_variance = with_variance or setting.link.uses_variance
        LatentScorer.restart(self)

    def restart(self) -> None:
        """See ``Scorer``."""
        self._logits, self._variance = self._pool.latent(with_variance=self._with_variance)
        self._taken = torch.zeros(len(self._pool), dtype=torch.bool, device=self._pool.storage.device)
        mean = self._posterior.mean
        self._directions = mean.new_zeros(0, mean.shape[1])  # [t, D]
        self._beta = mean.new_zeros(0)  # [t]
        self._steps = mean.new_zeros(0, mean.shape[0])  # [t, C]
        self._applied = 0  # how many of the t labels the pool's logits and variances include

    def release(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[self._pool.shard.here(picks)] = False

    def withhold(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[self._pool.shard.here(picks)] = True

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """See ``Scorer``."""
        self._bring_up_to_date()
        x = self._pool.standardized(picks)
        columns = self._columns(x)
        h, triangle, beta, _ = (
            result[0]
            for result in coefficients(
                (columns @ x.T)[None],
                self._pool.shard.gather(self._logits, picks)[None],
                labels[None],
                rule,
                name="pool",
                rows=self._pool.to_rows(picks)[None],
            )
        )
        u, steps = columns, h
        if len(picks) > 1:  # for one row the triangle is the identity
            u = torch.linalg.solve_triangular(triangle, columns, upper=False, unitriangular=True)
            steps = triangle.T @ h
        self._directions = torch.cat([self._directions, u])
        self._beta = torch.cat([self._beta, beta])
        self._steps = torch.cat([self._steps, steps])

    def predictive(self, picks: Tensor) -> Tensor:
        """See ``Scorer``."""
        self._bring_up_to_date()
        gather = self._pool.shard.gather
        variance = None if self._variance is None else gather(self._variance, picks)
        return self._predictive(gather(self._logits, picks), variance)

    def _predictive(
        self,
        logits: Tensor,  # [k, C]
        variance: Tensor | None,  # [k]
    ) -> Tensor:  # [k, C]
        return ops.predictive.unchecked(logits, variance if self._kappa > 0 else None, self._kappa)

    def _columns(
        self,
        x: Tensor,  # [k, D], standardised
    ) -> Tensor:  # [k, D]
        """Rows times the current covariance."""
        explained = (x @ self._directions.T) * self._beta
        return x @ self._posterior.covariance - explained @ self._directions

    def _bring_up_to_date(self) -> None:
        """Apply the labels that the pool's logits and variances do not include yet."""
        pending = slice(self._applied, len(self._beta))
        count = pending.stop - pending.start
        if count == 0:
            return
        if count == 1:  # the same arithmetic as in a pick, so that a replay gives equal bits
            self._step_through_pool(torch.ones_like(self._taken), None, "margin")
            return
        columns = self._pool.columns(self._directions[pending])
        self._logits += columns @ self._steps[pending]
        if self._variance is not None:
            self._variance -= columns.square() @ self._beta[pending]
        self._applied = pending.stop

    def _step_through_pool(
        self,
        taken: Tensor,  # [N] bool, the pick is set in place
        scale: Tensor | None,  # [N]
        kind: str,
    ) -> tuple[Tensor, Tensor]:
        """Apply at most one pending label to the pool and take its best row, in one pass."""
        mean = self._posterior.mean
        if self._applied < len(self._beta):
            direction, g, beta = self._directions[-1:], self._steps[-1], self._beta[-1]
        else:
            direction, g, beta = mean.new_zeros(1, mean.shape[1]), mean.new_zeros(mean.shape[0]), mean.new_zeros(())
        self._applied = len(self._beta)
        weights, offsets = self._standardization.raw(direction)
        return ops.selection_step_.unchecked(
            self._pool.storage,
            weights[0],
            offsets[0],
            g,
            beta,
            self._logits,
            self._variance,
            taken,
            scale,
            kind,
            self._kappa,
        )
