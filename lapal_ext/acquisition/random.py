"""Random selection: one random order of all rows per selection."""

import torch
from torch import Tensor

from lapal_ext.acquisition.custom import RowScorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.rules import EXACT_LINKS


class RandomScorer(RowScorer):
    """Utilities are uniform draws, the same at every call. Every rank draws them for all N rows."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, "acquisition")
        self._seed = setting.seed

    def _score(self) -> Tensor:  # [N]
        shard, mean = self._pool.shard, self._posterior.mean
        generator = torch.Generator(device="cpu").manual_seed(self._seed)
        draws = torch.rand(shard.total, dtype=mean.dtype, generator=generator, device="cpu")
        return draws[shard.numbers].to(mean.device)


SPEC = Spec(RandomScorer, drawing_links=EXACT_LINKS, scores_every_row=True, batch_targets=None)
