"""The utilities of ``ops.utility``, from logits of the whole pool in memory, or from logits computed for every pick."""

from functools import partial

from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.latent_scorer import LatentScorer
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import check_variance
from lapal_ext.rules import Link
from lapal_ext.utilities import NEED_SCALE
from lapal_ext.validation.tensors import check_overflow


class UncertaintyScorer(LatentScorer):
    """The formulas are in ``utilities.utility``. One pass over the pool absorbs a label, scores and picks."""

    def __init__(self, setting: Setting, kind: str) -> None:
        super().__init__(setting, with_variance=kind == "variance")
        self._kind = kind
        self._scale = self._pool.norms() if kind in NEED_SCALE else None

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        if count == 1 and len(self._beta) - self._applied <= 1:
            index, utility = self._step_through_pool(self._taken, self._scale, self._kind)
            return self._pool.shard.best_of_candidates(index, utility, self._taken)
        self._bring_up_to_date()
        utilities = ops.utility.unchecked(self._logits, self._variance, self._scale, self._kind, self._kappa)
        return best_first(utilities, self._taken, count, self._pool.shard)


class TiledUncertaintyScorer(PosteriorScorer):
    """The same utilities, with nothing of size N C in memory: a pick computes the logits of a tile of rows at a time.

    O(N D C) per pick in place of O(N (D + C)), and O(N D^2) more if the variance is used.
    """

    _squares_norms = False

    def __init__(self, setting: Setting, kind: str) -> None:
        super().__init__(setting)
        self._kind = kind

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        utilities = self._posterior.mean.new_empty(len(self._pool))
        for rows, x in self._pool.standardized_tiles():
            utilities[rows] = tile_utilities(self._posterior, x, self._kind, self._link, rows.start)
        return best_first(utilities, self._taken, count, self._pool.shard)


def tile_utilities(
    posterior: LastLayerLaplace,
    x: Tensor,  # [n, D] or [n, D + 1], standardised
    kind: str,
    link: Link,
    first_row: int,
) -> Tensor:  # [n]
    """Utilities of some rows of the pool from the posterior itself; ``first_row`` is the number of the first of them.

    Raises:
        ValueError: a logit or a variance is not finite.
        NotPSDError: a variance is negative, or most of it is rounding.
    """
    logits, variance = ops.inner_products(x, posterior.mean), None
    if kind == "variance" or link.uses_variance:
        variance = ops.predictive_variance(x, posterior.covariance)
        check_variance(variance, x, posterior.covariance, "pool", first_row)
    check_overflow("pool", logits)
    scale = x.norm(dim=1) if kind in NEED_SCALE else None
    return ops.utility(logits, variance, scale, kind, link.kappa)


def spec(kind: str) -> Spec:
    """The spec of one of ``utilities.UTILITIES``."""
    return Spec(
        partial(UncertaintyScorer, kind=kind),
        partial(TiledUncertaintyScorer, kind=kind),
        uses_variance=kind == "variance",
        uses_probabilities=kind != "variance",
        scores_every_row=True,
    )
