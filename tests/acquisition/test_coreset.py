"""CoreSet: compared with k-centre greedy on all pairwise distances."""

import pytest
import torch
from torch import Tensor

from lapal_ext import select_batch
from tests.acquisition.dense import distances, first_largest, inner
from tests.problems import make_problem

B = 10


@pytest.mark.parametrize("labelled", [0, 1, 37, None])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 4, B])
def test_picks_are_those_of_the_definition(n_classes: int, labelled: int | None, update_every: int) -> None:
    problem = make_problem(n_classes=n_classes)
    pool = torch.cat([problem.pool, problem.pool[:30]])
    given = None if labelled is None else problem.eval_features[:labelled]
    result = select_batch(problem.posterior, pool, B, "coreset", update_every=update_every, labelled=given)
    rows = inner(problem.posterior, pool)
    centres = inner(problem.posterior, given) if labelled else rows[:0]
    picks: list[int] = []
    values: list[Tensor] = []
    for _ in range(B):
        chosen = torch.cat([centres, rows[picks]])
        nearest = distances(rows, chosen if len(chosen) > 0 else rows.mean(0, keepdim=True)).amin(1)
        picks.append(first_largest(nearest, picks))
        values.append(nearest[picks[-1]])
    assert result.indices.tolist() == picks
    torch.testing.assert_close(result.utilities, torch.stack(values), rtol=1e-9, atol=0)


def test_copies_come_last_in_their_order(dtype: torch.dtype) -> None:
    problem = make_problem(n_pool=5, dtype=dtype)
    result = select_batch(problem.posterior, problem.pool.repeat(3, 1), 15, "coreset")
    assert sorted(result.indices[:5].tolist()) == [0, 1, 2, 3, 4]
    assert result.indices[5:].tolist() == list(range(5, 15))
    assert not result.utilities[5:].any()
