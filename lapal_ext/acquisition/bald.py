"""Mutual information between the weights and the label of a row: from samples, or in closed form."""

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.latent_scorer import LatentScorer
from lapal_ext.acquisition.scorer import best_first
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.rules import EXACT_LINKS

_SAMPLES = 512  # of the logits with link "mc"; all rows share them, so that they are compared under the same noise


class BaldScorer(LatentScorer):
    """BALD: the entropy of the mean predictive minus the mean entropy, in nats.

    ``mc``: H(mean_s p_s) - mean_s H(p_s) over 512 samples p_s = softmax(z + sqrt(v) noise_s), one noise [S, C] for all
    rows and all picks of a selection. O(N S C) per pick.

    ``plugin`` and ``mean_field``: the information gain of the Gaussian posterior, ``information_gain`` with the p of
    the link. O(N C) per pick.

    Source: Houlsby et al. (2011), "Bayesian Active Learning for Classification and Preference Learning",
    arXiv 1112.5745.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, with_variance=True)
        self._noise = None
        if setting.link.name == "mc":
            mean, generator = self._posterior.mean, torch.Generator(device="cpu").manual_seed(setting.seed)
            self._noise = torch.randn(_SAMPLES, len(mean), dtype=mean.dtype, generator=generator, device="cpu").to(
                mean.device
            )

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        self._bring_up_to_date()
        assert self._variance is not None
        if self._noise is None:
            utilities = information_gain(self._predictive(self._logits, self._variance), self._variance)
        else:
            mean, entropy = ops.mc_predictive(self._logits, self._variance, self._noise)
            utilities = torch.special.entr(mean).sum(1) - entropy
        return best_first(utilities, self._taken, count, self._pool.shard)

    def _predictive(
        self,
        logits: Tensor,  # [k, C]
        variance: Tensor | None,  # [k]
    ) -> Tensor:  # [k, C]
        if self._noise is None or variance is None:
            return super()._predictive(logits, variance)
        return ops.mc_predictive(logits, variance, self._noise)[0]


def information_gain(
    probabilities: Tensor,  # [N, C]
    variance: Tensor,  # [N]
) -> Tensor:  # [N]
    """Expected reduction of the entropy of a Gaussian over the weights by one label: log det(I + v F) / 2.

    F = diag(p) - p p^T is the Fisher information of the softmax in the logits, whose covariance is v I. Its
    determinant has a closed form; with w the likeliest class,
        sum_{k != w} log(1 + v p_k) / 2  +  log(1 + v sum_{k != w} p_k (p_w - p_k) / (1 + v p_k)) / 2,
    a sum of terms that are not negative, so that confident rows keep their precision. For small v it equals BALD to
    first order, v (1 - |p|^2) / 2. For large v, BALD is bounded by log C and this is not.

    Source: MacKay (1992), "Information-Based Objective Functions for Active Data Selection"; the Fisher form for
    classification in Kirsch and Gal (2022), arXiv 2208.00549; the closed form is ours. A variance that rounding has
    made negative counts as zero.
    """
    v = variance.clamp(min=0.0)[:, None]
    winner = probabilities.argmax(1, keepdim=True)
    largest = probabilities.gather(1, winner)
    others = probabilities.scatter(1, winner, 0.0)
    spread = (v * others * (largest - others) / (1.0 + v * others)).sum(1)
    return 0.5 * ((v * others).log1p().sum(1) + spread.log1p())


SPEC = Spec(
    BaldScorer,
    links=(*EXACT_LINKS, "mc"),
    drawing_links=("mc",),
    uses_variance=True,
    keeps_logits=True,
    scores_every_row=True,
)
