"""The part of a scorer that keeps a whole posterior up to date, for what is no function of the pool's logits."""

import torch
from torch import Tensor

from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.validation.tensors import check_overflow


class PosteriorScorer:
    """Absorbs labels into a posterior of its own, O(D^2) each; whoever derives from it adds ``pick``."""

    _takes_norms = True  # whether a pick may square the rows of the pool

    def __init__(self, posterior: LastLayerLaplace, pool: Pool, link: str, step: str, gamma: float) -> None:
        self._posterior, self._pool = posterior.clone(), pool
        self._link, self._step, self._gamma = link, step, gamma
        if self._takes_norms:
            check_overflow("pool", 4.0 * pool.norms().square())  # of a variance, or of a distance between two rows
        self._taken = torch.zeros(len(pool), dtype=torch.bool, device=pool.storage.device)

    def release(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[self._pool.shard.here(picks)] = False

    def withhold(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[self._pool.shard.here(picks)] = True

    def absorb(self, picks: Tensor, labels: Tensor) -> None:
        """See ``Scorer``."""
        self._posterior.update(self._pool.outer(picks), labels, self._step, self._gamma)

    def predictive(self, picks: Tensor) -> Tensor:
        """See ``Scorer``."""
        return self._posterior.predict_proba(self._pool.outer(picks), self._link)
