"""The base class of scorers that keep a whole posterior up to date, since they need more than the pool's logits."""

import torch
from torch import Tensor

from lapal_ext.acquisition.spec import Setting
from lapal_ext.posterior.last_layer_laplace import condition_on_rows
from lapal_ext.rules import UpdateRule
from lapal_ext.validation.tensors import check_overflow


class PosteriorScorer:
    """Absorbs labels into a posterior of its own, O(D^2) each; a subclass adds ``pick``.

    What else changes with labels or picks, a subclass sets in its constructor and again in ``restart``.
    """

    _squares_norms = True  # whether a pick may need squared norms of the rows, which could overflow

    def __init__(self, setting: Setting) -> None:
        self._initial, self._pool, self._link = setting.posterior, setting.pool, setting.link
        if self._squares_norms:  # as in a variance, or in a distance between two rows
            check_overflow("pool", 4.0 * self._pool.norms().square())
        PosteriorScorer.restart(self)

    def restart(self) -> None:
        """See ``Scorer``."""
        self._posterior = self._initial.clone()
        self._taken = torch.zeros(len(self._pool), dtype=torch.bool, device=self._pool.storage.device)

    def release(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[self._pool.shard.here(picks)] = False

    def withhold(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        self._taken[self._pool.shard.here(picks)] = True

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """See ``Scorer``."""
        rows, features = self._pool.to_rows(picks), self._pool.raw(picks)
        self._posterior = condition_on_rows(self._posterior, "pool", rows, features, labels, rule.step, rule.gamma)

    def predictive(self, picks: Tensor) -> Tensor:
        """See ``Scorer``."""
        return self._posterior.predict_proba(self._pool.raw(picks), self._link.name)
