"""Every method of a selector changes all of its state or none, wherever an exception ends it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lapal_ext import NotPSDError, SequentialSelector
from lapal_ext.acquisition.registry import ACQUISITIONS, make_scorer
from lapal_ext.selection import sequential_selector
from tests.interruptions import InjectedError, Raising, raising_at_line, raising_at_op
from tests.problems import Problem, make_problem

CALLS = ("tell", "tell two", "skip", "ask", "undo", "correct", "forget", "reserve", "release", "load_state_dict")
_LAST = 12  # steps of a call that are all tried: the new state is kept in one of them
# Of those before, every so many are tried in the calls that take most of them.
WORK = {"ask": 4, "load_state_dict": 16, "undo": 16, "correct": 24, "forget": 24, "reserve": 8, "release": 8}


def custom(posterior: Any, pool: torch.Tensor) -> torch.Tensor:
    return -posterior.predict_proba(pool).amax(1)


def selector_of(problem: Problem, acquisition: Any) -> SequentialSelector:
    generator = torch.Generator().manual_seed(1)
    labelled = problem.eval_features[:6]
    return SequentialSelector(problem.posterior, problem.pool, acquisition, generator=generator, labelled=labelled)


def begun(problem: Problem, acquisition: Any) -> SequentialSelector:
    """A selector with answers of every kind, and a question that waits."""
    selector = selector_of(problem, acquisition)
    pair = selector.ask(2)
    selector.tell(pair, problem.labels[pair])
    selector.skip(selector.ask())
    selector.ask(reserve=True)
    selector.ask()
    return selector


def summary(selector: SequentialSelector) -> list[Any]:
    """The answers, the model, and the question with its runner-up."""
    state = selector.state_dict()
    posterior = selector.posterior
    asked = [selector.ask(2).tolist(), selector.ask().tolist()]
    return [*(value.tolist() for value in state.values()), posterior.mean.tolist(), posterior.absorbed_labels, asked]


def calls(problem: Problem, row: int) -> dict[str, Callable[[SequentialSelector], object]]:
    state = begun(problem, "margin").state_dict()
    told = torch.tensor([row, (row + 7) % 60])
    return {
        "tell": lambda selector: selector.tell(told[:1], problem.labels[told[:1]]),
        "tell two": lambda selector: selector.tell(told, problem.labels[told]),
        "skip": lambda selector: selector.skip(told),
        "ask": lambda selector: selector.ask(3),
        "undo": lambda selector: selector.undo(),
        "correct": lambda selector: selector.tell(selector.answers.rows[:1], [3]),
        "forget": lambda selector: selector.forget(selector.answers.rows[:1]),
        "reserve": lambda selector: selector.ask(2, reserve=True),
        "release": lambda selector: selector.release(selector.state_dict()["reserved"]),
        "load_state_dict": lambda selector: selector.load_state_dict(state),
    }


@pytest.mark.parametrize("where", [raising_at_line, raising_at_op], ids=["line", "op"])
@pytest.mark.parametrize("acquisition", ["margin", "uherding"])
@pytest.mark.parametrize("name", CALLS)
def test_an_exception_anywhere_changes_nothing(name: str, acquisition: str, where: Raising) -> None:
    problem = make_problem(n_pool=60)
    selector = begun(problem, acquisition)
    free = next(row for row in range(60) if row not in selector.state_dict()["rows"])
    call = calls(problem, free)[name]
    before = summary(selector)
    done = begun(problem, acquisition)
    with where(0, InjectedError) as seen:
        call(done)
    after = summary(done)
    number, interrupted = 1, 0
    while True:
        error = (InjectedError, KeyboardInterrupt)[interrupted % 2]
        try:
            with where(number, error):
                call(selector)
        except error:
            interrupted += 1
            assert summary(selector) == before, f"step {number}"
        else:
            break
        number = min(number + WORK.get(name, 1), max(number + 1, seen[0] - _LAST))
    assert interrupted > 1
    assert summary(selector) == after  # the last try counted once


@pytest.mark.parametrize("acquisition", [*ACQUISITIONS, custom], ids=lambda name: getattr(name, "__name__", name))
def test_every_acquisition_survives_an_exception(acquisition: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each method of the scorer, after it has done its work."""
    if acquisition in ("typiclust", "probcover"):
        pytest.importorskip("sklearn")
    problem = make_problem()
    selector, expected = begun(problem, acquisition), begun(problem, acquisition)
    before = summary(selector)
    fails: list[str] = []

    class Failing:
        def __init__(self, scorer: Any) -> None:
            self._scorer = scorer

        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                result = getattr(self._scorer, name)(*args)
                if name in fails:
                    raise InjectedError
                return result

            return call

    monkeypatch.setattr(sequential_selector, "make_scorer", lambda *args: Failing(make_scorer(*args)))
    selector = begun(problem, acquisition)
    row = int(selector.ask())
    for name in ("pick", "release", "withhold", "absorb", "restart"):
        fails.append(name)
        with pytest.raises(InjectedError):
            selector.ask(2) if name == "pick" else selector.undo() if name == "restart" else selector.tell(row, 1)
        fails.clear()
        assert summary(selector) == before, name
    selector.tell(row, 1)
    expected.tell(row, 1)
    assert summary(selector) == summary(expected)


def test_a_covariance_that_cannot_absorb_a_label_changes_nothing() -> None:
    problem = make_problem(dtype=torch.float32)
    pool = problem.pool.clone()
    pool[5] = 3e7
    selector = SequentialSelector(problem.posterior, pool, "margin")
    selector.skip(0)
    before = summary(selector)
    for _ in range(3):
        with pytest.raises((NotPSDError, ValueError)):
            selector.tell(torch.tensor([3, 5]), torch.tensor([1, 2]))
        assert summary(selector) == before
