"""The softmax likelihood in plain torch: link, curvature, residual and step length, each formula once.

Classes are the last dimension of every ``logits`` argument and leading dimensions broadcast; a class-major matrix
``[C, E]`` is passed as its transposed view. C++ and CUDA repeat these formulas in ``csrc/shared/likelihood.h``. Losses
are in ``losses``, utilities in ``utilities``.

Everything is written relative to the winning class, whose exponential is exactly one: ``1 - p_max`` is then a sum of
the other exponentials, not a difference of nearly equal numbers, and confident rows still rank correctly in float32.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.line_search import line_search

CURVATURES = ("categorical", "gaussian")
STEPS = ("line_search", "newton")

MEAN_FIELD_FACTOR = math.pi / 8  # kappa of MacKay (1992), the probit approximation of the expected softmax
PSD_SLACK = 64.0  # a variance below -PSD_SLACK * eps * (variance before the updates) is not explained by rounding
RESOLUTION = 2.0**-7  # largest rounding error of a variance, relative to 1 + variance


class TopTerms(NamedTuple):
    """The softmax of a row relative to its winner, the first class with the largest logit."""

    winner: Tensor  # [...] int64
    shifted: Tensor  # [..., C] logits minus the largest, <= 0
    others: Tensor  # [..., C] exp(shifted), but zero at the winner
    rest: Tensor  # [...] sum of others: the partition function is 1 + rest


def top_terms(
    logits: Tensor,  # [..., C]
) -> TopTerms:
    """Exponentials relative to the winner's, which is exactly one and is left out of the sums."""
    winner = logits.argmax(-1)
    shifted = logits - logits.gather(-1, winner[..., None])
    zero = shifted.gather(-1, winner[..., None])  # NaN where a logit is infinite: such a row is not certain
    others = shifted.exp().scatter(-1, winner[..., None], zero)
    return TopTerms(winner, shifted, others, others.sum(-1))


def mean_field(
    logits: Tensor,  # [..., C]
    variance: Tensor,  # [...]
    kappa: float = MEAN_FIELD_FACTOR,
) -> Tensor:  # [..., C]
    """Logits whose softmax approximates the posterior predictive: z / sqrt(1 + kappa v) (MacKay 1992).

    The classes share one variance, so the order of the classes never changes. A variance that rounding has made
    negative counts as zero.
    """
    return logits * (1.0 + kappa * variance.clamp(min=0.0)).rsqrt()[..., None]


def curvature_weight(
    logits: Tensor,  # [..., C]
    curvature: str,
) -> Tensor:  # [...]
    """Weight s of an observation in the precision: 1 (``gaussian``) or p_max (1 - p_max) (``categorical``).

    The categorical weight is the upper bound that Huseljic et al. (arXiv 2210.06112) put on the softmax Hessian so that
    all classes share one covariance.
    """
    if curvature == "gaussian":
        return torch.ones_like(logits[..., 0])
    if curvature != "categorical":
        raise ValueError(f"curvature must be one of {CURVATURES}, got {curvature!r}")
    rest = top_terms(logits).rest
    return rest / (1.0 + rest).square()


def residual(
    logits: Tensor,  # [..., C]
    targets: Tensor,  # [...] int64
) -> Tensor:  # [..., C]
    """Gradient of the log-likelihood in the logits: r = e_y - softmax(z), with 1 - p_y summed up."""
    p = logits.softmax(-1)
    others = p.scatter(-1, targets[..., None], 0.0)
    return (-others).scatter(-1, targets[..., None], others.sum(-1, keepdim=True))


def step_length(
    logits: Tensor,  # [..., C]
    variance: Tensor,  # [...]
    targets: Tensor,  # [...] int64
    gamma: float,
    step: str,
    curvature: str,
) -> Tensor:  # [...]
    """Step length a of one observation, so that W <- W + a r (Sigma phi)^T.

    ``newton`` is the rule of Huseljic et al., a = gamma / (1 + s v) with s at the present W. (Their published code has
    1 + v in its categorical branch, with the correct line commented out; this is Sherman-Morrison.)

    ``line_search`` (ours) minimises cross_entropy(z + a v r, y) + a^2 v |r|^2 / (2 gamma) over a: the same direction,
    convex, its root in [0, gamma], so it cannot overshoot where a confidently wrong model makes s vanish.
    """
    if step == "newton":
        return gamma / (1.0 + curvature_weight(logits, curvature) * variance)
    if step != "line_search":
        raise ValueError(f"step must be one of {STEPS}, got {step!r}")
    return line_search(logits, variance, residual(logits, targets), targets, gamma)


def entropy(
    top: TopTerms,
) -> Tensor:  # [...]
    """Entropy of the softmax, log(1 + rest) - sum_k p_k (z_k - z_winner)."""
    return top.rest.log1p() - (top.others * top.shifted).sum(-1) / (1.0 + top.rest)
