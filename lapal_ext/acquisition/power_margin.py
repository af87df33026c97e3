"""Rows drawn in proportion to their margin utility, so that a batch differs from the best rows."""

import torch
from torch import Tensor

from lapal_ext.acquisition.custom import RowScorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.acquisition.uncertainty import tile_utilities
from lapal_ext.rules import EXACT_LINKS


class PowerMarginScorer(RowScorer):
    """Power acquisition with the margin utility: stochastic top-b, the baseline for strategies that choose batches.

    The utility of row i is log(u_i) + g_i, with the margin utility u_i and a draw g_i from Gumbel(0, 1). So each pick
    is drawn from the free rows in proportion to u_i, without replacement. This is the paper's u_i^beta with beta = 1.
    The draws stay the same during a selection, so that rows stay comparable after labels are absorbed. A row with a
    margin utility of zero counts as if it had the smallest positive number: it comes after the others.

    Every rank draws the numbers of all N rows. O(N D C) per group of picks. No logits are kept.

    Source: Kirsch et al. (2023), "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning", TMLR,
    arXiv 2106.12059: "power" acquisition, by the Gumbel top-k trick.
    """

    _squares_norms = False  # ``tile_utilities`` checks what it computes

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, "acquisition")
        self._draws = gumbel_draws(setting.seed, self._pool.shard.total)[self._pool.shard.numbers]
        self._draws = self._draws.to(self._posterior.mean.device, self._posterior.mean.dtype)

    def _score(self) -> Tensor:  # [N]
        utilities = self._draws.clone()
        smallest = torch.finfo(utilities.dtype).tiny
        for rows, x in self._pool.standardized_tiles():
            margin = tile_utilities(self._posterior, x, "margin", self._link, rows.start)
            utilities[rows] += margin.clamp_(min=smallest).log_()
        return utilities


def gumbel_draws(seed: int, count: int) -> Tensor:  # [count] float64
    """Draws from Gumbel(0, 1); in float64, since draws in float32 would tie in large pools."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return -torch.empty(count, dtype=torch.float64, device="cpu").exponential_(generator=generator).log_()


SPEC = Spec(
    PowerMarginScorer,
    drawing_links=EXACT_LINKS,
    uses_probabilities=True,
    scores_every_row=True,
    batch_targets=None,
)
