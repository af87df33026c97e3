"""Ask and tell: one question, one update, the next question."""

import copy
from typing import Any

import pytest
import torch

from lapal_ext import SequentialSelector, select_batch
from tests.problems import Problem, make_problem


@pytest.fixture
def problem() -> Problem:
    return make_problem()


def answer(selector: SequentialSelector, problem: Problem, count: int) -> list[int]:
    rows = []
    for _ in range(count):
        row = selector.ask()
        selector.tell(row, problem.labels[row])
        rows.append(int(row))
    return rows


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("acquisition", ["margin", "variance", "gradient_norm"])
def test_ask_and_tell_give_the_batch_of_select_batch(problem: Problem, acquisition: str, link: str) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool, acquisition, link=link)
    rows = answer(selector, problem, 15)
    batch = select_batch(problem.posterior, problem.pool, 15, acquisition, problem.labels, link=link)
    assert rows == batch.indices.tolist()
    assert torch.equal(selector.posterior.mean, batch.posterior.mean)


def test_asking_again_changes_nothing(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    first = selector.ask()
    assert torch.equal(selector.ask(), first)
    three = selector.ask(n=3)
    assert three.shape == (3,)
    assert torch.equal(three[:1], first)
    assert torch.equal(selector.ask(), first)
    top = select_batch(problem.posterior, problem.pool, 3, targets=None, update_every=3)
    assert torch.equal(three, top.indices)


def test_several_answers_may_be_told_at_once(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    batch = selector.ask(n=4)
    selector.tell(batch, problem.labels[batch])
    expected = problem.posterior.condition_on(problem.pool[batch], problem.labels[batch])
    assert torch.equal(selector.posterior.mean, expected.mean)
    free = [row for row in range(60) if row not in batch.tolist()]
    best = select_batch(expected, problem.pool, 1, candidates=torch.tensor(free)).indices
    assert torch.equal(selector.ask(), best)


def test_any_row_may_be_told(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    asked = selector.ask()
    other = (int(asked) + 1) % 60
    selector.tell(other, int(problem.labels[other]))
    told = problem.posterior.condition_on(problem.pool[other : other + 1], problem.labels[other : other + 1])
    rest = torch.tensor([row for row in range(60) if row != other])
    assert torch.equal(selector.ask(), select_batch(told, problem.pool, 1, candidates=rest).indices)


def test_a_skipped_row_is_not_asked_again(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    ranking = SequentialSelector(problem.posterior, problem.pool).ask(n=3).tolist()
    selector.skip(selector.ask())
    assert int(selector.ask()) == ranking[1]
    selector.skip(ranking[1])
    assert int(selector.ask()) == ranking[2]
    assert torch.equal(selector.posterior.mean, problem.posterior.mean)
    selector.tell(ranking[0], 1)
    assert len(selector.state_dict()["rows"]) == 3


def test_undo_restores_the_same_bits(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool, link="mean_field")
    questions, models = [], []
    for number in range(6):
        questions.append(selector.ask())
        models.append(selector.posterior.mean)
        if number == 2:
            selector.skip(questions[-1])
        else:
            selector.tell(questions[-1], int(problem.labels[questions[-1]]))
    for question, model in zip(reversed(questions), reversed(models), strict=True):
        assert torch.equal(selector.undo(), question)
        assert torch.equal(selector.posterior.mean, model)
        assert torch.equal(selector.ask(), question)
    with pytest.raises(ValueError, match="nothing to undo"):
        selector.undo()


def test_a_state_dict_resumes_in_the_middle(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    answer(selector, problem, 4)
    selector.skip(selector.ask())
    pair = selector.ask(n=2)
    selector.tell(pair, problem.labels[pair])
    state = selector.state_dict()
    resumed = SequentialSelector(problem.posterior, problem.pool)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.posterior.mean, selector.posterior.mean)
    assert answer(resumed, problem, 8) == answer(selector, problem, 8)
    resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), resumed.state_dict().values(), strict=True))
    resumed.undo()
    assert resumed.state_dict()["rows"].tolist() == state["rows"].tolist()[:-2]


def test_candidates_keep_their_row_numbers(problem: Problem) -> None:
    candidates = torch.tensor([50, 10, 30, 20])
    selector = SequentialSelector(problem.posterior, problem.pool, candidates=candidates)
    rows = answer(selector, problem, 4)
    assert sorted(rows) == [10, 20, 30, 50]
    with pytest.raises(ValueError, match="no row is left to ask for: all 4 have a label or are skipped"):
        selector.ask()
    with pytest.raises(ValueError, match="indices must be candidates"):
        selector.tell(11, 0)


def test_the_selector_has_its_own_copy_of_the_posterior(problem: Problem) -> None:
    posterior = problem.posterior.clone()
    selector = SequentialSelector(posterior, problem.pool)
    expected = answer(SequentialSelector(problem.posterior, problem.pool), problem, 5)
    posterior.update(problem.pool, problem.labels)
    assert answer(selector, problem, 5) == expected
    selector.posterior.mean.zero_()
    assert float(selector.posterior.mean.abs().max()) > 0


@pytest.mark.parametrize(
    ("indices", "labels", "error", "message"),
    [
        (60, 0, ValueError, r"indices must lie in \[0, 60\)"),
        (-1, 0, ValueError, "indices must be at least 0"),
        (5, 4, ValueError, r"labels must lie in \[0, 4\)"),
        (5, -1, ValueError, "labels must be at least 0"),
        (5, 1.0, TypeError, "labels must be an integer"),
        ("5", 1, TypeError, "indices must be an integer"),
        (torch.tensor([1, 1]), torch.tensor([0, 0]), ValueError, "indices must not hold duplicates"),
        (torch.tensor([1, 2]), torch.tensor([0]), ValueError, "labels must hold one label for each of 2"),
        (torch.tensor([1.0]), torch.tensor([0]), TypeError, "indices must hold integers"),
    ],
)
def test_bad_answers_change_nothing(problem: Problem, indices, labels, error: type, message: str) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    selector.tell(7, 0)
    due, model = selector.ask(), selector.posterior.mean
    with pytest.raises(error, match=message):
        selector.tell(indices, labels)
    assert torch.equal(selector.ask(), due)
    assert torch.equal(selector.posterior.mean, model)
    assert selector.state_dict()["rows"].tolist() == [7]


def test_bad_states_change_nothing(problem: Problem) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool)
    answer(selector, problem, 3)
    state, due = selector.state_dict(), selector.ask()
    for name, value, message in (
        ("rows", torch.tensor([1, 2]), "state must hold vectors of one length"),
        ("rows", torch.tensor([1, 99, 2]), r"state\['rows'\] must lie in \[0, 60\)"),
        ("labels", torch.tensor([0, 9, 0]), r"state\['labels'\] must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            selector.load_state_dict({**state, name: value})
    with pytest.raises(KeyError):
        selector.load_state_dict({})
    assert torch.equal(selector.ask(), due)
    assert torch.equal(selector.state_dict()["rows"], state["rows"])


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
@pytest.mark.parametrize("acquisition", ["margin", "uherding", "badge", "coreset"])
def test_a_copy_and_its_original_go_on_apart(problem: Problem, acquisition: str, copied: Any) -> None:
    def told(rows: list[int]) -> SequentialSelector:
        seed = torch.Generator().manual_seed(4)
        selector = SequentialSelector(
            problem.posterior, problem.pool, acquisition, labelled=problem.pool[:4], generator=seed
        )
        selector.tell(rows, problem.labels[rows])
        return selector

    original = told([0, 1])
    original.ask(2)
    twin = copied(original)
    twin.tell([2, 3], problem.labels[2:4])
    assert torch.equal(original.ask(5), told([0, 1]).ask(5))
    assert torch.equal(twin.ask(5), told([0, 1, 2, 3]).ask(5))
    assert (len(original.answers.rows), len(twin.answers.rows)) == (2, 4)
    original.tell(9, 1)
    assert torch.equal(twin.ask(5), told([0, 1, 2, 3]).ask(5))


def test_print_says_what_was_answered_and_what_is_left() -> None:
    problem = make_problem()
    selector = SequentialSelector(problem.posterior, problem.pool)
    selector.tell(selector.ask(3), torch.tensor([0, 1, 2]))
    selector.skip(selector.ask())
    shown = repr(selector)
    assert shown.startswith("SequentialSelector('margin' over 60 rows, 3 labelled, 1 skipped, 56 left; begun with Last")
    assert "tensor" not in shown
