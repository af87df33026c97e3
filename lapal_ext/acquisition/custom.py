"""Custom strategies: any callable that scores the whole pool."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.scorer import best_first, check_utilities
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import as_dense, count_of_changes, shape_text

Acquisition = Callable[[LastLayerLaplace, Tensor], Array]
"""(posterior, pool [N, D]) -> utilities [N], higher is better."""


class RowScorer(PosteriorScorer):
    """Takes the rows with the largest of the utilities [N] that a subclass computes in ``_score``.

    ``name`` is the argument that holds the acquisition, for errors.
    """

    def __init__(self, setting: Setting, name: str) -> None:
        super().__init__(setting)
        self._name = name

    def _score(self) -> Array:  # [N]
        raise NotImplementedError

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        utilities = as_dense(f"{self._name}'s utilities", self._score()).detach()
        if not utilities.dtype.is_floating_point:
            raise TypeError(f"{self._name}'s utilities must be floating point numbers, got {utilities.dtype}")
        if utilities.shape != (len(self._pool),):
            raise ValueError(
                f"{self._name}'s utilities must have shape ({len(self._pool)},), one per row, got "
                f"{shape_text(utilities.shape)}"
            )
        if utilities.device != self._taken.device:
            raise ValueError(f"{self._name}'s utilities must be on {self._taken.device}, got {utilities.device}")
        check_utilities(utilities, self._name)  # before a label is requested for such a pick
        return best_first(utilities, self._taken, count, self._pool.shard)


class CustomScorer(RowScorer):
    """Calls an acquisition on the pool with a posterior that has absorbed every label so far.

    A pool in half precision is widened for it, once, since squares and norms of its own dtype may overflow.
    """

    def __init__(self, setting: Setting, acquisition: Acquisition, name: str) -> None:
        super().__init__(setting, name)
        self._acquisition = acquisition
        self._rows: Tensor | None = None

    def _score(self) -> Array:  # [N]
        if self._rows is None:
            self._rows = self._pool.storage.to(self._posterior.mean.dtype)
        before = count_of_changes(self._rows)
        utilities = self._acquisition(self._posterior, self._rows)
        if count_of_changes(self._rows) != before:
            raise ValueError(f"{self._name} must not change the rows that it gets in place: they are those of the pool")
        return utilities


def spec(acquisition: Acquisition, name: str) -> Spec:
    """The spec of a callable in the argument ``name``. It may use any part of the posterior."""
    return Spec(
        partial(CustomScorer, acquisition=acquisition, name=name),
        uses_variance=True,
        scores_every_row=True,
    )
