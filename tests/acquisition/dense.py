"""The acquisitions by their definitions: dense, naive and in float64, on standardised features with a bias column."""

import math

import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace


def embeddings(posterior: LastLayerLaplace, pool: Tensor, link: str) -> Tensor:  # [N, C D]
    """BADGE's gradients, formed in full."""
    p = posterior.predict_proba(pool, link)
    gradient = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]) - p
    return torch.stack([torch.outer(g, phi).flatten() for g, phi in zip(gradient, inner(posterior, pool), strict=True)])


def inner(posterior: LastLayerLaplace, features: Tensor) -> Tensor:  # [N, D] or [N, D + 1]
    rows = (features - posterior.centre) * posterior.scale
    return torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], 1) if posterior.has_bias else rows


def distances(x: Tensor, y: Tensor) -> Tensor:  # [n, m]
    return (x[:, None] - y[None]).square().sum(2).sqrt()


def information(posterior: LastLayerLaplace, pool: Tensor) -> Tensor:  # [N, D, D]
    """Fisher information of every row under BAIT's binary surrogate."""
    top = posterior.predict_proba(pool, "plugin").amax(1)
    phi = inner(posterior, pool)
    return (top * (1 - top))[:, None, None] * phi[:, :, None] * phi[:, None, :]


def trace(precision: Tensor, fisher: Tensor) -> float:
    """BAIT's objective, tr(A^-1 F)."""
    return float(torch.linalg.solve(precision, fisher).trace())


def gaussian_information_gain(p: Tensor, variance: float) -> float:
    fisher = p.diag() - torch.outer(p, p)
    return 0.5 * math.log(float(torch.linalg.det(torch.eye(len(p), dtype=p.dtype) + variance * fisher)))


def first_largest(values: Tensor, taken: list[int]) -> int:
    """The unpicked row with the largest value; of rows equal up to rounding, the lowest."""
    free = [row for row in range(len(values)) if row not in taken]
    best = max(float(values[row]) for row in free)
    return next(row for row in free if float(values[row]) >= best - 1e-9 * abs(best))


def draw(distance: Tensor, threshold: float) -> int:
    """The first row at which the running sum exceeds the threshold times its total."""
    total, running = float(distance.sum()), 0.0
    for row, value in enumerate(distance.tolist()):
        running += value
        if running > threshold * total:
            return row
    raise AssertionError("every distance is zero")
