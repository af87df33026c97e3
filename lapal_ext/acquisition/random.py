"""Random selection: one random order of all rows per selection."""

import torch
from torch import Tensor

from lapal_ext.acquisition.custom import CustomScorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import EXACT_LINKS


class RandomScorer(CustomScorer):
    """Utilities are uniform draws, the same at every call. Every rank draws them for all N rows."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, self._draw, "acquisition")
        self._seed = setting.seed

    def _draw(self, posterior: LastLayerLaplace, pool: Tensor) -> Tensor:
        shard = self._pool.shard
        generator = torch.Generator().manual_seed(self._seed)
        draws = torch.rand(shard.total, dtype=posterior.mean.dtype, generator=generator)
        return draws[shard.numbers].to(pool.device)


SPEC = Spec(RandomScorer, drawing_links=EXACT_LINKS, scores_every_row=True, batch_targets=None)
