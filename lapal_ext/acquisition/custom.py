"""Acquisitions that score the whole pool anew: any callable, and random selection as the smallest of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.pool.pool import Pool
from lapal_ext.pool.sharding import Shard, Whole
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.validation.tensors import check_dense, shape_text

Acquisition = Callable[[LastLayerLaplace, Tensor], Tensor]
"""(posterior, pool [N, D]) -> utilities [N], higher is better."""


def random_acquisition(seed: int, shard: Whole | Shard) -> Acquisition:
    """Utilities that are uniform draws, the same at every call: one random order of all rows per selection."""

    def draw(posterior: LastLayerLaplace, pool: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(shard.total, dtype=posterior.mean.dtype, generator=generator)
        return draws[shard.numbers].to(pool.device)

    return draw


class CustomScorer(PosteriorScorer):
    """Calls an acquisition on the pool with a posterior that has absorbed every label so far.

    ``name`` is the argument that the acquisition came in, for errors.
    """

    def __init__(
        self,
        posterior: LastLayerLaplace,
        pool: Pool,
        link: str,
        step: str,
        gamma: float,
        acquisition: Acquisition,
        name: str,
    ) -> None:
        super().__init__(posterior, pool, link, step, gamma)
        self._acquisition, self._name = acquisition, name

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        utilities = self._acquisition(self._posterior, self._pool.storage)
        utilities = check_dense(f"{self._name}'s utilities", utilities).detach()
        if not utilities.dtype.is_floating_point:
            raise TypeError(f"{self._name}'s utilities must be floating point numbers, got {utilities.dtype}")
        if utilities.shape != (len(self._pool),):
            raise ValueError(
                f"{self._name}'s utilities must have shape ({len(self._pool)},), one per row, got "
                f"{shape_text(utilities.shape)}"
            )
        if utilities.device != self._taken.device:
            raise ValueError(f"{self._name}'s utilities must be on {self._taken.device}, got {utilities.device}")
        if bool(utilities.isnan().any()):  # before anybody is asked for the label of such a pick
            raise ValueError(f"{self._name} gave a utility that is not a number; nothing was selected")
        return best_first(utilities, self._taken, count, self._pool.shard)
