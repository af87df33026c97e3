"""Losses of a softmax prediction, one function each, listed by name in ``LOSSES``.

C++ and CUDA repeat these formulas in ``csrc/shared/losses.h``. ``csrc/README.md`` says how to add one.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lapal_ext.likelihood import TopTerms, entropy, top_terms


def loss(
    logits: Tensor,  # [..., C]
    targets: Tensor | None,  # [...] int64, None for the expected losses
    kind: str,
) -> Tensor:  # [...]
    """Loss of softmax(logits), one of ``LOSSES``.

    Raises:
        ValueError: ``kind`` is not a loss, or it needs ``targets`` and they are None.
    """
    if kind in _EXPECTED:
        return _EXPECTED[kind](top_terms(logits))
    if kind not in _LABELLED:
        raise ValueError(f"loss must be one of {LOSSES}, got {kind!r}")
    if targets is None:
        raise ValueError(f"loss {kind!r} needs targets")
    top = top_terms(logits)
    # Every loss gathers, so that a target that is no class raises. A comparison would count it as a wrong prediction.
    target_logit = top.shifted.gather(-1, targets.expand(top.rest.shape)[..., None])[..., 0]
    return _LABELLED[kind](top, targets, target_logit)


def _cross_entropy(top: TopTerms, _: Tensor, target_logit: Tensor) -> Tensor:
    """-log p_y."""
    return top.rest.log1p() - target_logit


def _zero_one(top: TopTerms, targets: Tensor, target_logit: Tensor) -> Tensor:
    """1 where the winner is not y, else 0."""
    return (top.winner != targets).to(target_logit.dtype)


def _brier(top: TopTerms, targets: Tensor, target_logit: Tensor) -> Tensor:
    """sum_k (p_k - [k = y])^2, without the cancellation of 1 - p_y where y is the winner."""
    partition = 1.0 + top.rest
    p_target = target_logit.exp() / partition
    squares = top.others.square().sum(-1)
    right = (top.rest.square() + squares) / partition.square()
    wrong = (1.0 - p_target).square() - p_target.square() + (1.0 + squares) / partition.square()
    return torch.where(top.winner == targets, right, wrong)


def _expected_zero_one(top: TopTerms) -> Tensor:
    """1 - p_max, the probability of an error under the prediction itself."""
    return top.rest / (1.0 + top.rest)


_LABELLED: dict[str, Callable[[TopTerms, Tensor, Tensor], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "zero_one": _zero_one,
    "brier": _brier,
}
_EXPECTED: dict[str, Callable[[TopTerms], Tensor]] = {  # the expectation is under the prediction itself
    "expected_cross_entropy": entropy,
    "expected_zero_one": _expected_zero_one,
}
EXPECTED_LOSSES = tuple(_EXPECTED)
LOSSES = (*_LABELLED, *EXPECTED_LOSSES)
