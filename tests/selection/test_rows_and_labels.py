"""Rows and labels in every form that people have them in: taken, or refused with what to write."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, SequentialSelector, look_ahead, select_batch, select_lookahead
from tests.problems import Problem, make_problem

NAMES = ("ant", "bee", "cat", "dog")
ROWS = [3, 5, 8, 13]
FORMS: dict[str, Callable[[list[int]], Any]] = {
    "a list": list,
    "a tuple": tuple,
    "a list of NumPy integers": lambda rows: list(np.array(rows, np.int16)),
    "a list of tensors": lambda rows: list(torch.tensor(rows)),
    **{
        str(dtype): lambda rows, dtype=dtype: torch.tensor(rows, dtype=dtype)
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    },
    **{
        dtype: lambda rows, dtype=dtype: np.array(rows, dtype)
        for dtype in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
    },
}
REFUSED: dict[str, tuple[Any, str]] = {
    "a mask": (torch.arange(60) < 4, r"must hold integers, got torch.bool.*mask\.nonzero\(\)\[:, 0\]"),
    "a mask in an array": (np.arange(60) < 4, r"must hold integers, got torch.bool.*numpy\.flatnonzero\(mask\)"),
    "a mask in a list": ([True] * 60, r"must hold integers, got a list with bool.*numpy\.flatnonzero\(mask\)"),
    "floats": (torch.tensor([1.0, 2.0]), "must hold integers, got torch.float32"),
    "floats in a list": ([1.0, 2.0], "must hold integers, got a list with float"),
    "a nested list": ([[1, 2]], "must hold integers, got a list with list"),
    "a set": ({1, 2}, "got set"),
}


def told(problem: Problem, rows: Any, labels: Any) -> Tensor:
    selector = SequentialSelector(problem.posterior, problem.pool)
    selector.tell(rows, labels)
    return selector.posterior.mean


def skipped(problem: Problem, rows: Any) -> Tensor:
    selector = SequentialSelector(problem.posterior, problem.pool)
    selector.skip(rows)
    return selector.ask(3)


USES: dict[str, Callable[[Problem, Any], Any]] = {
    "exclude": lambda p, rows: select_batch(p.posterior, p.pool, 5, exclude=rows).indices,
    "candidates": lambda p, rows: select_batch(p.posterior, p.pool, 2, candidates=rows).indices,
    "references": lambda p, rows: select_batch(p.posterior, p.pool, 2, "maxherding", references=rows).indices,
    "selector candidates": lambda p, rows: SequentialSelector(p.posterior, p.pool, candidates=rows).ask(2),
    "selector references": lambda p, rows: SequentialSelector(p.posterior, p.pool, "maxherding", references=rows).ask(),
    "tell": lambda p, rows: told(p, rows, torch.tensor([0, 1, 2, 3])),
    "skip": skipped,
}


@pytest.fixture
def problem() -> Problem:
    return make_problem()


@pytest.fixture
def named() -> Problem:
    made = make_problem()
    made.posterior.class_names = NAMES
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("use", USES)
def test_rows_of_any_integer_type(problem: Problem, use: str, form: str) -> None:
    expected = USES[use](problem, torch.tensor(ROWS))
    assert torch.equal(USES[use](problem, FORMS[form](ROWS)), expected)


@pytest.mark.parametrize("form", REFUSED)
@pytest.mark.parametrize("use", USES)
def test_other_rows_are_refused_with_what_to_write(problem: Problem, use: str, form: str) -> None:
    value, message = REFUSED[form]
    name = {"tell": "indices", "skip": "indices"}.get(use, use.removeprefix("selector "))
    with pytest.raises((TypeError, ValueError), match=f"^{name} .*{message}" if form != "a set" else message):
        USES[use](problem, value)


@pytest.mark.parametrize("rows", [[], torch.tensor([]), np.array([])])
def test_no_rows_exclude_nothing(problem: Problem, rows: Any) -> None:
    expected = select_batch(problem.posterior, problem.pool, 3).indices
    assert torch.equal(select_batch(problem.posterior, problem.pool, 3, exclude=rows).indices, expected)


def label_uses(problem: Problem) -> dict[str, Callable[[Any], Tensor]]:
    x = problem.pool
    names = problem.posterior.class_names

    def answer(labels: Any) -> Tensor:
        return select_batch(problem.posterior, x, 4, "margin", lambda row: labels[row]).posterior.mean

    return {
        "update": lambda y: problem.posterior.clone().update(x, y).mean,
        "joint": lambda y: problem.posterior.clone().update(x, y, "joint").mean,
        "condition_on": lambda y: problem.posterior.condition_on(x, y).mean,
        "fit_map": lambda y: LastLayerLaplace.fit_map(x, y, 4, class_names=names).mean,
        "evidence": lambda y: problem.posterior.log_marginal_likelihood(x, y),
        "tell": lambda y: told(problem, range(60), y),
        "select_batch": lambda y: select_batch(problem.posterior, x, 4, targets=y).posterior.mean,
        "an annotator": answer,
        "look_ahead": lambda y: look_ahead(problem.posterior, x, torch.arange(6).view(2, 3), y, x, y),
        "select_lookahead": lambda y: select_lookahead(
            problem.posterior, x, x, 2, targets=y, eval_targets=y, proposals="informative",
            generator=torch.Generator().manual_seed(0),
        ).posterior.mean,
    }  # fmt: skip


LABELS = list(label_uses(make_problem()))
AS_NAMES: dict[str, Callable[[list[str]], Any]] = {
    "a list": list,
    "a tuple": tuple,
    "an array": np.array,
    "an array of objects": lambda names: np.array(names, object),
    "NumPy strings": lambda names: [np.str_(name) for name in names],
}


@pytest.mark.parametrize("form", AS_NAMES)
@pytest.mark.parametrize("use", LABELS)
def test_names_of_classes_are_labels(named: Problem, use: str, form: str) -> None:
    call = label_uses(named)[use]
    given = AS_NAMES[form]([NAMES[label] for label in named.labels])
    assert torch.equal(call(given), call(named.labels))
    with pytest.raises(ValueError, match=r"must hold names of classes, got 'eel', which is none of \(ant, bee, cat, …"):
        call(AS_NAMES[form](["eel"] * 60))
    with pytest.raises(ValueError, match=r"'Bea', which is none of \(ant, bee, cat, …\): did you mean bee\?$"):
        call(AS_NAMES[form](["Bea"] * 60))


@pytest.mark.parametrize("use", LABELS)
def test_numbers_in_a_list_are_labels_too(problem: Problem, use: str) -> None:
    call = label_uses(problem)[use]
    assert torch.equal(call(problem.labels.tolist()), call(problem.labels))
    assert torch.equal(call(np.array(problem.labels.tolist(), object)), call(problem.labels))
    with pytest.raises(TypeError, match=r"must (hold integers where the classes have no names|be an integer)"):
        call(["ant"] * 60)
    if use != "an annotator":
        with pytest.raises(TypeError, match=r"must hold (integers|names of classes or their numbers)"):
            call(["ant", *problem.labels.tolist()[1:]])


BATCHES: dict[str, Callable[[list[list[int]]], Any]] = {
    "lists": list,
    "tuples": lambda batches: tuple(map(tuple, batches)),
    "a list of arrays": lambda batches: [np.array(batch, np.int32) for batch in batches],
    "a list of tensors": lambda batches: [torch.tensor(batch) for batch in batches],
    "an array of objects": lambda batches: np.array(batches, object),
    **{form: FORMS[form] for form in FORMS if "int" in form and "list" not in form},
}


@pytest.mark.parametrize("form", BATCHES)
def test_batches_are_rows_of_any_integer_type(problem: Problem, form: str) -> None:
    batches = [[3, 5], [8, 13], [0, 59]]
    arguments = problem.posterior, problem.pool
    expected = look_ahead(*arguments, torch.tensor(batches), problem.labels, problem.pool)
    given = BATCHES[form](batches)
    assert torch.equal(look_ahead(*arguments, given, problem.labels, problem.pool), expected)
    for wrong, message in (
        ([[3, 5], [8]], "hold lists of one length, got 2 in list 0 and 1 in list 1"),
        ([[3, 3], [8, 13]], "not hold a row twice, got batch 0 with one"),
        ([[3, 60], [8, 13]], r"lie in \[0, 60\), one of the rows of pool, got 60"),
        ([], r"have shape \(M, b\), got \(0,\)"),
        ([[], []], r"hold at least one row each, got \(2, 0\)"),
    ):
        with pytest.raises(ValueError, match=f"^batches must {message}"):
            look_ahead(*arguments, wrong, problem.labels, problem.pool)


OF_BATCHES: dict[str, Callable[[list[list[Any]]], Any]] = {
    "lists": list,
    "tuples": lambda rows: tuple(tuple(row) if isinstance(row, list) else row for row in rows),
    "an array": np.array,
    "an array of objects": lambda rows: np.array(rows, object),
}


@pytest.mark.parametrize("form", OF_BATCHES)
def test_labels_of_batches_in_lists_and_arrays(named: Problem, form: str) -> None:
    x, batches, make = named.pool, torch.arange(6).view(3, 2), OF_BATCHES[form]
    numbers = named.labels[:6].view(3, 2)
    expected = look_ahead(named.posterior, x, batches, numbers, x)
    names = [[NAMES[label] for label in row] for row in numbers.tolist()]
    for given in (numbers.tolist(), names):
        assert torch.equal(look_ahead(named.posterior, x, batches, make(given), x), expected)

    def refused(labels: list[list[Any]], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"^targets must {message}"):
            look_ahead(named.posterior, x, batches, make(labels), x)

    refused([["ant", "Bea"]] * 3, ValueError, r"hold names of classes, got 'Bea', .*: did you mean bee\?$")
    refused([[0, 4]] * 3, ValueError, r"lie in \[0, 4\), one of the 4 classes, got 4")
    refused([["ant"] * 3] * 2, ValueError, r"have shape \(60,\), .*, or \(3, 2\) like batches, got \(2, 3\)")
    if form != "an array":
        refused([["ant", 1]] * 3, TypeError, "hold names of classes or their numbers, got str and int")
    if form in ("lists", "tuples"):
        refused([[0, 1], [0], [1, 2]], ValueError, "hold lists of one length, got 2 in list 0 and 1 in list 1")
        refused([[0, 1], 2, 3], TypeError, "hold integers, got a list with (list|tuple)")
    named.posterior.class_names = None
    refused(names, TypeError, "hold integers where the classes have no names, got str: pass class_names first")


def test_one_name_for_one_row(named: Problem) -> None:
    one, other = (SequentialSelector(named.posterior, named.pool) for _ in range(2))
    one.tell(7, "cat")
    other.tell(7, 2)
    assert torch.equal(one.posterior.mean, other.posterior.mean)
    assert torch.equal(one.state_dict()["labels"], torch.tensor([2]))


def test_series_of_pandas(named: Problem) -> None:
    pandas = pytest.importorskip("pandas")
    rows = pandas.Series(ROWS)
    for use in USES.values():
        with pytest.raises(TypeError, match=r"got Series: pass its \.to_numpy\(\)$"):
            use(named, rows)
        use(named, rows.to_numpy())
    labels = pandas.Series([NAMES[label] for label in named.labels])
    for name, call in label_uses(named).items():
        if name != "an annotator":
            with pytest.raises(TypeError, match=r"got Series: pass its \.to_numpy\(\)$"):
                call(labels)
            call(labels.to_numpy())
    frame = pandas.DataFrame(named.pool.numpy())
    with pytest.raises(TypeError, match=r"got DataFrame: pass its \.to_numpy\(\)$"):
        select_batch(named.posterior, frame)
    with pytest.raises(TypeError, match=r"got DataFrame: pass its \.to_numpy\(\)$"):
        named.posterior.predict_proba(frame)


class Frame:
    """What pandas and polars have in common."""

    def __len__(self) -> int:
        return 60

    def to_numpy(self) -> Any:
        raise AssertionError


def test_frames_are_refused_with_what_to_write(named: Problem) -> None:
    for call in (*label_uses(named).values(), *(lambda rows, use=use: use(named, rows) for use in USES.values())):
        with pytest.raises(TypeError):
            call(Frame())
    with pytest.raises(TypeError, match=r"^pool must be .*, got Frame: pass its \.to_numpy\(\)$"):
        select_batch(named.posterior, Frame())


class Column(Sequence[int]):
    """As columns of ``datasets``."""

    def __len__(self) -> int:
        return 60

    def __getitem__(self, row: Any) -> Any:
        return range(60)[row] % 3


def test_columns_are_refused_with_what_to_write(named: Problem) -> None:
    for use in ("update", "fit_map", "select_batch"):
        with pytest.raises(TypeError, match=r"got Column: pass torch\.tensor\(\.\.\.\) or numpy\.asarray\(\.\.\.\)"):
            label_uses(named)[use](Column())


@pytest.mark.parametrize("row", [0, 1, 59])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_first_bad_row_of_a_pool_is_named(dtype: torch.dtype, bad: float, row: int) -> None:
    problem = make_problem(dtype=torch.float32)
    pool = problem.pool.to(dtype)
    pool[row:, 2] = bad
    with pytest.raises(
        ValueError, match=rf"^pool must be finite, got {60 - row} NaN .* values, the first in row {row}$"
    ):
        select_batch(problem.posterior, pool)


def test_the_first_bad_row_of_many() -> None:
    problem = make_problem(dtype=torch.float32)
    pool = problem.pool.repeat(500, 1)
    pool[20_000, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the first in row 20000$"):
        SequentialSelector(problem.posterior, pool)


@pytest.mark.filterwarnings("ignore:optimize_prior_precision found the best value")
@pytest.mark.parametrize("n_rows", [2, 3, 4, 5, 6])
def test_the_default_search_works_with_few_rows(problem: Problem, n_rows: int) -> None:
    x, y = problem.pool[:n_rows], problem.labels[:n_rows]
    found = LastLayerLaplace.optimize_prior_precision(x, y, 4, generator=torch.Generator().manual_seed(0))
    folds = min(5, n_rows)
    expected = LastLayerLaplace.optimize_prior_precision(
        x, y, 4, n_folds=folds, generator=torch.Generator().manual_seed(0)
    )
    assert found == expected
