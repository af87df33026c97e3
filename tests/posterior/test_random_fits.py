"""500 random fits, many of them hard: each ends at the minimum or warns, never far from it in silence."""

import numpy as np
import pytest
import torch

from lapal_ext.posterior.map_fit import TOLERANCE, map_weights
from tests.draws import Draw

ALLOWED = 1e-3  # of the probabilities of the rows: ten times the tolerance, which is an estimate
KINDS = ("plain", "any size", "columns of any size", "copies", "far from zero", "nearly equal columns", "sparse")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(500))
def test_random_fit(seed: int) -> None:
    choose, draw = np.random.default_rng(seed), Draw(seed)
    n, d, c = (int(choose.choice(sizes)) for sizes in ([1, 3, 20, 60, 200, 800], [1, 2, 8, 40, 120], [2, 3, 7, 30]))
    kind = str(choose.choice(KINDS))
    x = draw.normal(n, d)
    if kind == "any size":
        x = x * 10.0 ** choose.uniform(-6, 6)
    elif kind == "columns of any size":
        x = x * 10.0 ** torch.from_numpy(choose.uniform(-6, 6, d))
    elif kind == "copies":
        x = x[draw.integers(max(1, n // 5), n)]
    elif kind == "far from zero":
        x = x + 10.0 ** choose.uniform(0, 4)
    elif kind == "nearly equal columns":
        x = x[:, :1] + 1e-4 * x
    elif kind == "sparse":
        x = x * (draw.uniform(n, d) < 0.1)
    y = (x @ draw.normal(d, c)).argmax(1) if choose.random() < 0.4 else draw.integers(c, n)
    if choose.random() < 0.3:
        y = y % max(1, c // 2)  # classes without a row
    size = float(x.square().mean()) + 1e-30 if choose.random() < 0.5 else 1.0
    prior_precision = min(max(10.0 ** choose.uniform(-6, 3) * size, 1e-30), 1e30)
    x = x.to(torch.float64 if choose.random() < 0.2 else torch.float32)
    trust = draw.uniform(n) if choose.random() < 0.3 else None
    start = draw.normal(c, d) / (1 + float(x.abs().max())) if choose.random() < 0.3 else None
    fit = map_weights(x, y, c, prior_precision, trust=trust, start=start, tolerance=TOLERANCE)
    exact = map_weights(x.double(), y, c, prior_precision, trust=trust)
    if fit.converged and exact.converged:
        difference = (x.double() @ fit.weight.T).softmax(1) - (x.double() @ exact.weight.T).softmax(1)
        assert float(difference.abs().max()) <= ALLOWED
