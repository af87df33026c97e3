"""BAIT: every pick and every removal is the best one by the dense objective tr(A^-1 F)."""

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, backend, select_batch
from lapal_ext.likelihood import CURVATURES
from tests.acquisition.dense import first_largest, information, trace
from tests.problems import make_problem

B = 6


def forward(
    posterior: LastLayerLaplace, pool: Tensor, taken: list[int], count: int
) -> tuple[list[int], list[float], Tensor]:
    """Greedy picks, by how much each lowers the objective, and the precision after all of them."""
    rows = information(posterior, pool)
    fisher, precision = rows.mean(0), posterior.precision.clone()
    picks: list[int] = []
    gains: list[float] = []
    for _ in range(count):
        before = trace(precision, fisher)
        drops = torch.tensor([before - trace(precision + row, fisher) for row in rows])
        picks.append(first_largest(drops, taken + picks))
        gains.append(float(drops[picks[-1]]))
        precision = precision + rows[picks[-1]]
    return picks, gains, precision


def backward(posterior: LastLayerLaplace, pool: Tensor, picks: list[int], precision: Tensor, count: int) -> list[int]:
    rows = information(posterior, pool)
    kept = list(picks)
    for _ in range(count):
        rises = torch.tensor([trace(precision - rows[pick], rows.mean(0)) for pick in kept])
        pick = kept.pop(int((rises <= rises.min() * (1 + 1e-9)).nonzero()[-1]))  # the last of equals
        precision = precision - rows[pick]
    return kept


@pytest.mark.parametrize("name", ["bait", "bait_forward_backward"])
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 4, B])
def test_picks_are_those_of_the_definition(n_classes: int, curvature: str, name: str, update_every: int) -> None:
    problem = make_problem(n_classes=n_classes, n_pool=40, curvature=curvature)
    pool = torch.cat([problem.pool, problem.pool[:10]])
    labels = problem.labels.repeat(2)[:50]
    result = select_batch(problem.posterior, pool, B, name, labels, update_every=update_every)
    posterior, picks, values = problem.posterior, [], []
    while len(picks) < B:
        count = min(update_every, B - len(picks))
        factor = 2 if name == "bait_forward_backward" else 1
        group, gains, precision = forward(posterior, pool, picks, factor * count)
        kept = backward(posterior, pool, group, precision, len(group) - count)
        values += [gain for pick, gain in zip(group, gains, strict=True) if pick in kept]
        picks += kept
        posterior = posterior.condition_on(pool[kept], labels[kept])
    assert pool[result.indices].equal(pool[picks])
    if backend("inner_products", "cpu") == "native":  # torch's matrix products may differ between copies of a row
        assert result.indices.tolist() == picks
    torch.testing.assert_close(result.utilities, torch.tensor(values, dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_backward_pass_changes_some_batches_and_spoils_none() -> None:
    values: dict[str, list[float]] = {"bait": [], "bait_forward_backward": []}
    for seed in range(6):
        problem = make_problem(seed=seed, n_pool=200)
        rows = information(problem.posterior, problem.pool)
        for name, objectives in values.items():
            picks = select_batch(problem.posterior, problem.pool, B, name, None, update_every=B).indices
            objectives.append(trace(problem.posterior.precision + rows[picks].sum(0), rows.mean(0)))
    forward_alone, both = (torch.tensor(objectives) for objectives in values.values())
    assert not torch.equal(both, forward_alone)
    torch.testing.assert_close(both, forward_alone, rtol=3e-3, atol=0)


def test_the_last_rows_of_a_pool_leave_nothing_to_remove() -> None:
    problem = make_problem(n_pool=9)
    result = select_batch(problem.posterior, problem.pool, 9, "bait_forward_backward", None, update_every=5)
    assert sorted(result.indices.tolist()) == list(range(9))


def test_without_labels_update_every_changes_the_covariance_but_not_the_picks() -> None:
    problem = make_problem()
    one_by_one = select_batch(problem.posterior, problem.pool, B, "bait", None, update_every=1)
    at_once = select_batch(problem.posterior, problem.pool, B, "bait", None)
    assert torch.equal(one_by_one.indices, at_once.indices)
    assert not torch.equal(one_by_one.posterior.covariance, at_once.posterior.covariance)
