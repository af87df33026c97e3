"""The posterior by its definitions: dense precision matrices, a fresh inverse each time, explicit loops.

Nothing here is taken from the package: this is what the ops are checked against.
"""

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


def line_search_slope(logits: Tensor, variance: float, label: int, gamma: float, a: float) -> float:
    """Derivative in a of cross_entropy(z + a v r, y) + a^2 v |r|^2 / (2 gamma), divided by v."""
    target = one_hot(label, len(logits))
    r = target - softmax(logits)
    return float(r @ (softmax(logits + a * variance * r) - target) + a * (r @ r) / gamma)


def bisected_root(logits: Tensor, variance: float, label: int, gamma: float) -> float:
    """Where the slope, which increases with a, is zero in [0, gamma]: 200 halvings, nothing clever."""
    low, high = 0.0, gamma
    for _ in range(200):
        middle = (low + high) / 2
        if line_search_slope(logits, variance, label, gamma, middle) > 0:
            high = middle
        else:
            low = middle
    return high


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
        r = one_hot(label, len(logits)) - softmax(logits)
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
