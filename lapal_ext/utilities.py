"""Utilities: how informative the label of a row would be. One function each, listed by name in ``UTILITIES``.

Higher is better for every kind. C++ and CUDA repeat these formulas in ``csrc/shared/utilities.h``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lapal_ext.likelihood import TopTerms, entropy, top_terms


def utility(
    logits: Tensor,  # [..., C], after the link
    variance: Tensor | None,  # [...], for "variance"
    scale: Tensor | None,  # [...] norm of the features, for "gradient_norm"
    kind: str,
) -> Tensor:  # [...]
    """Utility of each row, one of ``UTILITIES``.

    ``margin`` 1 - (p_1 - p_2); ``entropy``; ``least_confident`` 1 - p_1; ``variance`` of the logits, v;
    ``gradient_norm`` |e_1 - p| |phi|, the norm of BADGE's gradient embedding (Ash et al., arXiv 1906.03671).

    Raises:
        ValueError: ``kind`` is not a utility, or an input that it needs is None.
    """
    check_inputs(variance, scale, kind)
    if kind == "variance":
        assert variance is not None
        return variance.clone()
    value = _OF_PROBABILITIES[kind](top_terms(logits))
    return value if kind not in NEED_SCALE or scale is None else value * scale


def check_inputs(variance: Tensor | None, scale: Tensor | None, kind: str) -> None:
    """Raise ValueError unless ``kind`` is a utility and the inputs that it needs are given."""
    if kind not in UTILITIES:
        raise ValueError(f"utility must be one of {UTILITIES}, got {kind!r}")
    if kind == "variance" and variance is None:
        raise ValueError("variance must be given for utility 'variance', got None")
    if kind in NEED_SCALE and scale is None:
        raise ValueError(f"scale must be given for utility {kind!r}, got None")


def _margin(top: TopTerms) -> Tensor:
    return (top.rest + top.others.amax(-1)) / (1.0 + top.rest)


def _least_confident(top: TopTerms) -> Tensor:
    return top.rest / (1.0 + top.rest)


def _gradient_norm(top: TopTerms) -> Tensor:
    # ``rest`` is factored out of the norm: on confident rows its square underflows in float32.
    shares = top.others / top.rest.clamp(min=torch.finfo(top.rest.dtype).tiny)[..., None]
    return top.rest * (1.0 + shares.square().sum(-1)).sqrt() / (1.0 + top.rest)


_OF_PROBABILITIES: dict[str, Callable[[TopTerms], Tensor]] = {
    "margin": _margin,
    "entropy": entropy,
    "least_confident": _least_confident,
    "gradient_norm": _gradient_norm,
}
NEED_SCALE = ("gradient_norm",)
UTILITIES = ("margin", "entropy", "least_confident", "variance", "gradient_norm")
