"""A state belongs to one pool, in one order."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lapal_ext import SequentialSelector
from tests.pool.test_checksum import CHANGES
from tests.problems import Problem, make_problem


@pytest.fixture
def problem() -> Problem:
    return make_problem()


def begun(problem: Problem, pool: Any, **options: Any) -> SequentialSelector:
    selector = SequentialSelector(problem.posterior, pool, **options)
    row = selector.ask()
    selector.tell(row, problem.labels[row])
    selector.skip(selector.ask())
    return selector


@pytest.mark.parametrize("candidates", [None, torch.arange(0, 58)])
@pytest.mark.parametrize(
    "change", [name for name in CHANGES if name not in ("fewer rows", "more columns", "another dtype")]
)
def test_a_state_is_not_loaded_over_another_pool(problem: Problem, change: str, candidates: Any) -> None:
    state = begun(problem, problem.pool, candidates=candidates).state_dict()
    alter, words = CHANGES[change]
    other = begun(problem, alter(problem.pool.clone()), candidates=candidates)
    before = other.state_dict()
    with pytest.raises(ValueError, match=rf"^pool has .*{words}.*: make the selector with the pool that"):
        other.load_state_dict(state)
    assert all(torch.equal(one, two) for one, two in zip(before.values(), other.state_dict().values(), strict=True))


def test_a_state_goes_on_over_the_same_pool_in_any_form(problem: Problem, tmp_path: Path) -> None:
    selector = begun(problem, problem.pool)
    file = io.BytesIO()
    torch.save(selector.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    np.save(tmp_path / "pool.npy", problem.pool.numpy())
    for pool in (problem.pool.clone(), problem.pool.numpy(), tmp_path / "pool.npy"):
        other = SequentialSelector(problem.posterior, pool)
        other.load_state_dict(state)
        assert torch.equal(other.ask(), selector.ask())


def test_a_state_goes_on_with_another_model_or_other_candidates(problem: Problem) -> None:
    """Only the pool has to be the same."""
    state = begun(problem, problem.pool).state_dict()
    other = SequentialSelector(
        problem.posterior.clone().add_class(), problem.pool, "entropy", candidates=torch.arange(60)
    )
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()["rows"], state["rows"])


@pytest.mark.parametrize("value", [torch.zeros(5), torch.zeros(4, dtype=torch.int64), None, "pool"])
def test_a_checksum_that_is_none_is_refused(problem: Problem, value: Any) -> None:
    selector = begun(problem, problem.pool)
    with pytest.raises((TypeError, ValueError), match=r"^state\['pool'\] must"):
        selector.load_state_dict({**selector.state_dict(), "pool": value})
    state = selector.state_dict()
    del state["pool"]
    with pytest.raises(KeyError, match="pool is missing"):
        selector.load_state_dict(state)
