"""The utilities of ``ops.utility``, of logits that are kept up to date for a whole pool or computed for every pick."""

from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.latent_scorer import LatentScorer
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.likelihood import MEAN_FIELD_FACTOR
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import check_variance
from lapal_ext.validation.tensors import check_overflow


class UncertaintyScorer(LatentScorer):
    """The formulas are in ``likelihood.utility``; absorbing a label, scoring and picking is one pass."""

    def __init__(self, posterior: LastLayerLaplace, pool: Pool, link: str, step: str, gamma: float, kind: str) -> None:
        super().__init__(posterior, pool, link, step, gamma, with_variance=kind == "variance")
        self._kind = kind
        self._scale = pool.norms() if kind == "gradient_norm" else None

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        if count == 1 and len(self._beta) - self._applied <= 1:
            index, utility = self._step_through_pool(self._taken, self._scale, self._kind)
            return self._pool.shard.settle(index, utility, self._taken)
        self._bring_up_to_date()
        utilities = ops.utility(self._logits, self._variance, self._scale, self._kind, self._kappa)
        return best_first(utilities, self._taken, count, self._pool.shard)


class TiledUncertaintyScorer(PosteriorScorer):
    """The same utilities, with nothing of size N C in memory: a pick computes the logits of a tile of rows at a time.

    O(N D C) per pick in place of O(N (D + C)), and O(N D^2) more where the variance counts.
    """

    _takes_norms = False

    def __init__(self, posterior: LastLayerLaplace, pool: Pool, link: str, step: str, gamma: float, kind: str) -> None:
        super().__init__(posterior, pool, link, step, gamma)
        self._kind = kind
        self._kappa = MEAN_FIELD_FACTOR if link == "mean_field" else 0.0

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        utilities = self._posterior.mean.new_empty(len(self._pool))
        for rows, inner in self._pool.inner_tiles():
            utilities[rows] = self._utilities(inner, rows.start)
        return best_first(utilities, self._taken, count, self._pool.shard)

    def _utilities(
        self,
        inner: Tensor,  # [n, D] or [n, D + 1]
        first_row: int,
    ) -> Tensor:  # [n]
        posterior = self._posterior
        logits, variance = ops.inner_products(inner, posterior.mean), None
        if self._kind == "variance" or self._kappa > 0:
            variance = ops.predictive_variance(inner, posterior.covariance)
            check_variance(variance, inner, posterior.covariance, "pool", first_row)
        check_overflow("pool", logits)
        scale = inner.norm(dim=1) if self._kind == "gradient_norm" else None
        return ops.utility(logits, variance, scale, self._kind, self._kappa)
