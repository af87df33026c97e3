"""The utilities of ``ops.utility``, kept up to date for a whole pool in one pass per pick."""

from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition._latent_scorer import LatentScorer
from lapal_ext.acquisition._scorer import best_first
from lapal_ext.pool import Pool
from lapal_ext.posterior import LastLayerLaplace


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
            return index[None], utility[None]
        self._bring_up_to_date()
        utilities = ops.utility(self._logits, self._variance, self._scale, self._kind, self._kappa)
        return best_first(utilities, self._taken, count)
