"""The posterior by its definitions: dense precision matrices, a fresh inverse each time, explicit loops.

Nothing here uses the package, because the ops are checked against this module.
"""

import math

import torch
from torch import Tensor


def softmax(logits: Tensor) -> Tensor:  # [..., C]
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


def one_hot(label: int, n_classes: int) -> Tensor:
    return torch.tensor([1.0 if k == int(label) else 0.0 for k in range(n_classes)], dtype=torch.float64)


def curvature_weight(logits: Tensor, curvature: str) -> float:  # logits [C]
    if curvature == "gaussian":
        return 1.0
    p = softmax(logits)
    winner = int(p.argmax())
    return float(p[winner] * (p[:winner].sum() + p[winner + 1 :].sum()))  # 1 - p_max would cancel


def residual(logits: Tensor, label: int) -> Tensor:
    """e_y - softmax(z), whose entry at y is the sum of the others: 1 - p_y would cancel."""
    r = -softmax(logits)
    r[int(label)] = 0.0
    r[int(label)] = -r.sum()
    return r


def line_search_slope(logits: Tensor, variance: float, label: int, gamma: float, a: float) -> float:
    """Derivative in a of cross_entropy(z + a v r, y) + a^2 v |r|^2 / (2 gamma), divided by v."""
    r = residual(logits, label)
    moved = softmax(logits + a * variance * r)
    return float(moved @ (r - r[label]) + a * (r @ r) / gamma)  # all terms of the first sum have one sign


def bisected_root(logits: Tensor, variance: float, label: int, gamma: float) -> float:
    """Where the slope, which increases with a, is zero in [0, gamma]: found by 200 halvings."""
    low, high = 0.0, gamma
    for _ in range(200):
        middle = (low + high) / 2
        if line_search_slope(logits, variance, label, gamma, middle) > 0:
            high = middle
        else:
            low = middle
    return high


def check_line_search(a: float, logits: Tensor, variance: float, label: int, gamma: float) -> None:
    """Assert that the slope is zero at ``a``, or that ``a`` is gamma.

    Where the model is already right, r is small and has the rounding error of p_y. Then only the change of the logits,
    a v |r|, must be right, up to a v times that error.
    """
    root, size = bisected_root(logits, variance, label, gamma), float(residual(logits, label).norm())
    rounding = 1e-15 * (1 + gamma * variance)
    assert math.isclose(a * size * variance, root * size * variance, rel_tol=1e-10, abs_tol=rounding)
    if size > 1e-3:
        assert 0 < a <= gamma * (1 + 1e-14)
        assert math.isclose(a, root, rel_tol=1e-10)
        assert root == gamma or line_search_slope(logits, variance, label, gamma, a * (1 - 1e-10)) <= 0
        assert line_search_slope(logits, variance, label, gamma, a * (1 + 1e-10)) >= 0


class DensePosterior:
    """Mean [C, D] and precision [D, D] that absorb one observation at a time."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.mean = mean.clone()
        self.precision = torch.linalg.inv(covariance)

    @property
    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision)

    def variance(self, phi: Tensor) -> float:
        return float(phi @ self.covariance @ phi)

    def absorb(self, phi: Tensor, label: int, gamma: float, step: str, curvature: str) -> float:
        """Take in one label; return the curvature weight with which it entered the precision."""
        logits = self.mean @ phi
        r = residual(logits, label)
        if step == "newton":  # the paper's form, with the covariance that already holds phi
            s = curvature_weight(logits, curvature)
            held = torch.linalg.inv(self.precision + s * torch.outer(phi, phi))
            self.mean = self.mean + gamma * torch.outer(r, held @ phi)
        else:
            a = bisected_root(logits, self.variance(phi), label, gamma)
            self.mean = self.mean + a * torch.outer(r, self.covariance @ phi)
        s = curvature_weight(self.mean @ phi, curvature)
        self.precision = self.precision + s * torch.outer(phi, phi)
        return s


def loss_by_definition(logits: Tensor, label: int | None, kind: str) -> float:  # logits [C]
    p = softmax(logits)
    if kind == "expected_zero_one":
        winner = int(p.argmax())
        return float(p[:winner].sum() + p[winner + 1 :].sum())
    if kind == "expected_cross_entropy":
        top = logits.amax()
        log_partition = (logits - top).exp().sum().log()
        return float(-sum(q * (z - top - log_partition) for q, z in zip(p, logits, strict=True)))
    if kind == "zero_one":
        return float(int(p.argmax()) != int(label))
    if kind == "brier":
        return float((p - one_hot(label, len(p))).square().sum())
    return float(logits.amax() + (logits - logits.amax()).exp().sum().log() - logits[int(label)])
