"""The utilities of ``ops.utility``, kept up to date for a whole pool in one pass per pick."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition._scorer import best_first
from lapal_ext.likelihood import MEAN_FIELD_FACTOR
from lapal_ext.pool import Pool
from lapal_ext.posterior import LastLayerLaplace
from lapal_ext.updating import coefficients


class UncertaintyScorer:
    """Logits and variances of the pool under a growing set of labels; the covariance is never rebuilt.

    With Sigma the posterior's covariance, the direction of pick t is
        u_t = Sigma phi_t - sum_{s<t} beta_s u_s (u_s . phi_t),  O(D^2 + D t),
    and absorbing it moves every row by its column c = Phi u_t: logits += c g_t^T, v -= beta_t c^2. ``selection_step_``
    does that, scores and picks in one pass; several labels at once go through one GEMM.
    """

    def __init__(self, posterior: LastLayerLaplace, pool: Pool, kind: str, link: str, step: str, gamma: float) -> None:
        self._posterior, self._pool = posterior, pool
        self._kind, self._step, self._gamma = kind, step, gamma
        self._kappa = MEAN_FIELD_FACTOR if link == "mean_field" else 0.0
        self._logits, self._variance = pool.latent(with_variance=link == "mean_field" or kind == "variance")
        self._scale = pool.norms() if kind == "gradient_norm" else None
        self._taken = torch.zeros(len(pool), dtype=torch.bool, device=pool.storage.device)
        mean = posterior.mean
        self._directions = mean.new_zeros(0, mean.shape[1])  # [t, D]
        self._beta = mean.new_zeros(0)  # [t]
        self._steps = mean.new_zeros(0, mean.shape[0])  # [t, C]
        self._applied = 0  # of the t labels, how many the pool's logits and variances know

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        if count == 1 and len(self._beta) - self._applied <= 1:
            index, utility = self._step_through_pool(self._taken)
            return index[None], utility[None]
        self._apply()
        utilities = ops.utility(self._logits, self._variance, self._scale, self._kind, self._kappa)
        return best_first(utilities, self._taken, count)

    def release(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[picks] = False

    def withhold(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[picks] = True

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """See ``Scorer``."""
        self._apply()
        inner = self._pool.inner(picks)
        columns = self._columns(inner)
        h, triangle, beta, _ = (
            result[0]
            for result in coefficients(
                (columns @ inner.T)[None],
                self._logits[picks][None],
                labels[None],
                self._gamma,
                self._step,
                self._posterior.curvature,
                name="pool",
                rows=self._pool.to_rows(picks)[None],
            )
        )
        u = torch.linalg.solve_triangular(triangle, columns, upper=False, unitriangular=True)
        self._directions = torch.cat([self._directions, u])
        self._beta = torch.cat([self._beta, beta])
        self._steps = torch.cat([self._steps, triangle.T @ h])

    def predictive(self, picks: Tensor) -> Tensor:
        """See ``Scorer``."""
        self._apply()
        variance = self._variance[picks] if self._variance is not None and self._kappa > 0 else None
        return ops.predictive(self._logits[picks], variance, self._kappa)

    def _columns(self, inner: Tensor) -> Tensor:
        """Inner features times the present covariance, [k, D]."""
        spent = (inner @ self._directions.T) * self._beta
        return inner @ self._posterior.covariance - spent @ self._directions

    def _apply(self) -> None:
        """Move the pool's logits and variances by the labels it does not know yet."""
        waiting = slice(self._applied, len(self._beta))
        count = waiting.stop - waiting.start
        if count == 0:
            return
        if count == 1:  # the same arithmetic as in a pick, so that a replay gives the same bits
            self._step_through_pool(torch.ones_like(self._taken))
            return
        columns = self._pool.columns(self._directions[waiting])
        self._logits += columns @ self._steps[waiting]
        if self._variance is not None:
            self._variance -= columns.square() @ self._beta[waiting]
        self._applied = waiting.stop

    def _step_through_pool(self, taken: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._posterior.mean
        if self._applied < len(self._beta):
            direction, g, beta = self._directions[-1:], self._steps[-1], self._beta[-1]
        else:
            direction, g, beta = mean.new_zeros(1, mean.shape[1]), mean.new_zeros(mean.shape[0]), mean.new_zeros(())
        self._applied = len(self._beta)
        weights, offsets = self._posterior.fold(direction)
        return ops.selection_step_(
            self._pool.storage,
            weights[0],
            offsets[0],
            g,
            beta,
            self._logits,
            self._variance,
            taken,
            self._scale,
            self._kind,
            self._kappa,
        )
