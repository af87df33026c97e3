"""Answers that are corrected, forgotten, trusted less, or given by several people; rows handed out to one of them."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lapal_ext import SequentialSelector
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.problems import Problem, make_problem


@pytest.fixture
def problem() -> Problem:
    return make_problem()


def make(problem: Problem, acquisition: str = "margin") -> SequentialSelector:
    labelled, generator = problem.eval_features[:6], torch.Generator().manual_seed(1)
    return SequentialSelector(problem.posterior, problem.pool, acquisition, labelled=labelled, generator=generator)


def tell(selector: SequentialSelector, problem: Problem, *rows: int) -> None:
    for row in rows:
        selector.tell(row, int(problem.labels[row]))


def wrong(problem: Problem, row: int) -> int:
    return (int(problem.labels[row]) + 1) % 4


def check_same(selector: SequentialSelector, expected: SequentialSelector) -> None:
    assert torch.equal(selector.posterior.mean, expected.posterior.mean)
    assert torch.equal(selector.posterior.covariance, expected.posterior.covariance)
    assert selector.posterior.absorbed_labels == expected.posterior.absorbed_labels
    assert torch.equal(selector.ask(3), expected.ask(3))
    assert torch.equal(selector.ask(), expected.ask())


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_a_corrected_or_forgotten_answer_was_never_told(problem: Problem, acquisition: str) -> None:
    if acquisition in ("typiclust", "probcover"):
        pytest.importorskip("sklearn")
    selector, expected = make(problem, acquisition), make(problem, acquisition)
    tell(selector, problem, 3)
    selector.tell(8, wrong(problem, 8))
    tell(selector, problem, 5)
    selector.tell(8, int(problem.labels[8]))
    tell(expected, problem, 3, 5, 8)
    check_same(selector, expected)
    selector.forget(3)
    selector.skip(2)
    selector.forget(2)
    expected = make(problem, acquisition)
    tell(expected, problem, 5, 8)
    check_same(selector, expected)
    assert selector.undo().tolist() == [2]
    for row in (2, 3, 8):  # the skip, the forgotten answer, and the correction
        assert selector.undo().tolist() == [row]
    expected = make(problem, acquisition)
    tell(expected, problem, 3)
    expected.tell(8, wrong(problem, 8))
    tell(expected, problem, 5)
    check_same(selector, expected)


def test_a_part_of_a_call_may_be_corrected_or_forgotten(problem: Problem) -> None:
    selector, expected = make(problem), make(problem)
    rows = torch.tensor([1, 4, 6, 9])
    selector.tell(rows, torch.zeros(4, dtype=torch.int64))
    selector.skip(torch.tensor([10, 11]))
    selector.tell(torch.tensor([4, 6]), problem.labels[[4, 6]])
    selector.forget([9, 10])
    expected.tell(1, 0)
    expected.skip(11)
    expected.tell(torch.tensor([4, 6]), problem.labels[[4, 6]])
    check_same(selector, expected)
    assert "3 labelled, 1 skipped, 56 left" in repr(selector)


def test_the_same_answer_again_changes_nothing(problem: Problem) -> None:
    selector = make(problem)
    selector.tell(torch.tensor([7, 8]), problem.labels[[7, 8]], gamma=torch.tensor([1.0, 0.5]))
    state = selector.state_dict()
    tell(selector, problem, 7)
    assert all(torch.equal(value, selector.state_dict()[name]) for name, value in state.items())
    tell(selector, problem, 8)  # with another trust
    assert len(selector.state_dict()["rows"]) == 3


def test_trust_scales_the_labels_of_one_call(problem: Problem) -> None:
    selector, x, y = make(problem), problem.pool, problem.labels
    selector.tell(1, int(y[1]), gamma=0.25)
    selector.tell(torch.tensor([2, 3, 4]), y[2:5], gamma=torch.tensor([2.0, 2.0, 0.0]))
    tell(selector, problem, 5)
    gamma = torch.tensor([0.25, 2.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    expected = problem.posterior.condition_on(x[1:6], y[1:6], gamma=gamma)
    torch.testing.assert_close(selector.posterior.mean, expected.mean, rtol=1e-12, atol=1e-12)
    after = SequentialSelector(expected, x, "margin", candidates=torch.tensor([0, *range(6, 60)]))
    assert torch.equal(selector.ask(3), after.ask(3))
    rows, labels, trust, annotators = selector.answers
    assert rows.tolist() == [1, 2, 3, 4, 5]
    assert torch.equal(labels, y[1:6])
    assert torch.equal(trust, gamma)
    assert annotators.tolist() == [0] * 5


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_a_row_with_two_answers_counts_once_among_the_rows(problem: Problem, acquisition: str) -> None:
    if acquisition in ("typiclust", "probcover"):
        pytest.importorskip("sklearn")
    selector = make(problem, acquisition)
    for annotator in range(3):
        selector.tell([8, 5], [0, annotator], annotator=annotator)
    for count in (1, 3, 58):
        rows = selector.ask(count).tolist()
        assert len(set(rows)) == count
        assert not {5, 8} & set(rows)


def test_two_annotators_are_two_observations(problem: Problem) -> None:
    selector, x, y = make(problem), problem.pool, problem.labels
    for annotator in (1, 2):
        selector.tell(torch.tensor([8, 5]), y[[8, 5]], annotator=annotator)
    expected = problem.posterior.condition_on(x[[8, 5, 8, 5]], y[[8, 5, 8, 5]])
    torch.testing.assert_close(selector.posterior.mean, expected.mean, rtol=1e-12, atol=1e-12)
    assert len(selector.disagreements) == 0
    assert "2 labelled, 0 skipped, 58 left" in repr(selector)
    selector.tell(5, wrong(problem, 5), annotator=2)
    assert selector.disagreements.tolist() == [5]
    assert selector.answers.rows.tolist() == [8, 5, 8, 5]
    assert selector.answers.annotators.tolist() == [1, 1, 2, 2]
    selector.forget(5, annotator=1)
    assert len(selector.disagreements) == 0
    assert selector.answers.rows.tolist() == [8, 8, 5]
    with pytest.raises(ValueError, match=r"indices must have a label of annotator 1, got 5"):
        selector.forget(torch.tensor([8, 5]), annotator=1)
    selector.forget(8)
    assert selector.answers.rows.tolist() == [5]
    assert selector.posterior.absorbed_labels == 1


def test_reserved_rows_are_not_asked_for_again(problem: Problem) -> None:
    selector = make(problem)
    ranking = make(problem).ask(6).tolist()
    anna = selector.ask(2, reserve=True)
    bert = selector.ask(2, reserve=True)
    assert [*anna.tolist(), *bert.tolist(), *selector.ask(2).tolist()] == ranking
    assert "4 reserved, 56 left" in repr(selector)
    selector.release(bert)
    assert selector.ask(2).tolist() == bert.tolist()
    with pytest.raises(ValueError, match=rf"indices must be reserved by ask\(reserve=True\), got {int(bert[0])}"):
        selector.release(bert)
    tell(selector, problem, int(anna[1]))
    assert "1 labelled, 0 skipped, 1 reserved, 58 left" in repr(selector)
    resumed = make(problem)
    resumed.load_state_dict(selector.state_dict())
    check_same(resumed, selector)
    assert int(anna[0]) not in resumed.ask(58).tolist()
    selector.undo()  # the row goes back to whom it was handed out to
    assert "0 labelled, 0 skipped, 2 reserved, 58 left" in repr(selector)
    tell(selector, problem, int(anna[0]))
    selector.forget(anna[:1])
    assert selector.ask().tolist() == ranking[:1]
    selector.release(anna[1:])
    check_same(selector, make(problem))


def test_all_rows_may_be_reserved(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool, candidates=[3, 4])
    assert sorted(selector.ask(2, reserve=True).tolist()) == [3, 4]
    tell(selector, problem, 3)
    with pytest.raises(ValueError, match=r"all 2 have a label or are skipped, or are reserved \(1, which release\(\)"):
        selector.ask()
    selector.release([3, 4])  # an answer stays
    assert selector.ask().tolist() == [4]


def test_a_state_holds_everything_that_was_said(problem: Problem) -> None:
    selector = make(problem, "uherding")
    selector.tell(torch.tensor([1, 2]), problem.labels[1:3], gamma=0.5, annotator=4)
    selector.tell(2, wrong(problem, 2))
    selector.skip(selector.ask())
    selector.forget(1, annotator=4)
    tell(selector, problem, 9)
    selector.forget(9)
    selector.ask(2, reserve=True)
    state, resumed = selector.state_dict(), make(problem, "uherding")
    resumed.load_state_dict({name: value.clone() for name, value in state.items()})
    check_same(resumed, selector)
    for _ in range(6):
        assert torch.equal(resumed.undo(), selector.undo())
        check_same(resumed, selector)


@pytest.mark.parametrize("convert", [torch.tensor, np.asarray, list], ids=["tensors", "arrays", "lists"])
def test_a_state_may_be_kept_in_lists(problem: Problem, convert: Callable[[Any], Any]) -> None:
    selector = make(problem)
    for expected in ([], [4]):
        tell(selector, problem, *expected)
        lists = json.loads(json.dumps({name: value.tolist() for name, value in selector.state_dict().items()}))
        resumed = make(problem)
        resumed.load_state_dict({name: value if name == "seed" else convert(value) for name, value in lists.items()})
        assert resumed.answers.rows.tolist() == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("trust", torch.tensor([1.0, -1.0, 1.0]), r"state\['trust'\] must be at least 0"),
        ("trust", torch.tensor([1.0, torch.nan, 1.0]), r"state\['trust'\] must be finite"),
        ("trust", torch.ones(2), "state must hold vectors of one length"),
        ("annotators", torch.tensor([0, -1, 0]), r"state\['annotators'\] must hold one number >= 0"),
        ("labels", torch.tensor([0, -2, 0]), r"state\['rows'\] must have a label of annotator 0, got 2"),
        ("reserved", torch.tensor([60]), r"state\['reserved'\] must lie in \[0, 60\)"),
        ("reserved", torch.tensor([[1]]), r"state\['reserved'\] must be a vector"),
    ],
)
def test_bad_states_change_nothing(problem: Problem, name: str, value: torch.Tensor, message: str) -> None:
    selector = make(problem)
    tell(selector, problem, 1, 2, 3)
    state, due = selector.state_dict(), selector.ask(2)
    with pytest.raises(ValueError, match=message):
        selector.load_state_dict({**state, name: value})
    assert torch.equal(selector.ask(2), due)
    assert torch.equal(selector.state_dict()["labels"], state["labels"])


def test_bad_calls_change_nothing(problem: Problem) -> None:
    selector = make(problem)
    tell(selector, problem, 1)
    due = selector.ask(2)
    for call, error, message in (
        (lambda: selector.forget([1, 2]), ValueError, "indices must have a label or be skipped, got 2"),
        (lambda: selector.forget(1, annotator=3), ValueError, "indices must have a label of annotator 3, got 1"),
        (lambda: selector.forget(1, annotator=-1), ValueError, "annotator must be at least 0"),
        (lambda: selector.tell(2, 0, annotator="anna"), TypeError, "annotator must be an integer"),
        (lambda: selector.tell(2, 0, gamma=-1.0), ValueError, "gamma must be at least 0"),
        (lambda: selector.tell(2, 0, gamma=torch.ones(2)), ValueError, r"gamma must have shape \(1,\)"),
        (lambda: selector.tell([2], [0], gamma="1"), TypeError, "gamma must be a number"),
        (lambda: selector.ask(reserve=1), TypeError, "reserve must be True or False"),
        (lambda: selector.release(60), ValueError, r"indices must lie in \[0, 60\)"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert torch.equal(selector.ask(2), due)
    assert selector.answers.rows.tolist() == [1]


def test_a_question_is_an_index_as_it_is(problem: Problem) -> None:
    row = make(problem).ask()
    assert list(range(60))[row] == int(row)
    assert torch.equal(problem.pool[row][0], problem.pool[int(row)])
    assert (problem.pool.numpy()[row] == problem.pool[int(row)].numpy()).all()
