"""Wrong arguments of selection and look-ahead: a typed error that names the argument, and nothing changed."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lapal_ext import (
    LastLayerLaplace,
    SelectionResult,
    SequentialSelector,
    expected_error_reduction,
    look_ahead,
    select_batch,
    select_lookahead,
)
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.fuzz import values
from tests.fuzz.calls import Call, bits, cases, check_error, fresh
from tests.fuzz.selection_values import (
    BATCHES,
    CANDIDATES,
    LA,
    LABELS,
    POINTS,
    POOL,
    TRUTH,
    N,
    acquisitions,
    annotators,
    rows,
)
from tests.fuzz.values import Bad, put


def ask_and_tell(**arguments: object) -> None:
    selector = SequentialSelector(**arguments)
    selector.tell(selector.ask(), 1)
    selector.ask(n=2)


def sources(names: str) -> dict[str, Bad]:
    return {**values.labels(LABELS, 4), "unknown": Bad("bogus", ValueError, f"must be one of {names}, got 'bogus'$")}


POOLS = {
    **values.features_of(POOL),
    "numpy, integers": Bad(np.zeros(POOL.shape, np.int64), TypeError, r"must be .*, got torch\.int64"),
    "no such file": Bad("nowhere.npy", FileNotFoundError, r"must be an existing file, got nowhere\.npy"),
}
ANYWHERE = {
    "posterior": values.posteriors(LA),
    "pool": {**POOLS, **values.overflowing(POOL)},
    "step": values.choices_not_none(),
    "gamma": values.numbers(),
    "link": {**values.choices_not_none(), "mc": Bad("mc", ValueError, "must be one of 'plugin', 'mean_field'")},
}
AT_POINTS = {"eval_features": {**values.features_of(POINTS), **values.overflowing(POINTS), **values.no_rows(POINTS)}}
MODEL = {"posterior": LA, "pool": POOL, "step": "line_search", "gamma": 1.0, "link": "mean_field"}
KNOWN = POINTS[:5]
LABELLED = {words: bad for words, bad in values.features_of(KNOWN).items() if words != "None"}
PICKING = {
    "acquisition": acquisitions(),
    "candidates": rows(CANDIDATES, "candidates"),
    "generator": values.generators(),
    "labelled": LABELLED,
}
STATEFUL = {name: bad for name, bad in ANYWHERE.items() if name != "posterior"} | {
    "candidates": PICKING["candidates"],
    "labelled": LABELLED,
}

CALLS = {
    "select_batch": Call(
        select_batch,
        MODEL
        | {"batch_size": 3, "acquisition": "margin", "targets": "predicted", "update_every": 1, "candidates": None}
        | {"generator": torch.Generator(), "progress": False, "labelled": None, "exclude": None, "memory": 1e9},
        {
            **ANYWHERE,
            **PICKING,
            "exclude": rows(CANDIDATES, "exclude"),
            "memory": {words: bad for words, bad in values.numbers(above_zero=True).items() if words != "NoneType"},
            "batch_size": values.integers(at_least=1, at_most=N),
            "targets": {
                words: bad for words, bad in sources("'auto', 'predicted', 'sampled'").items() if words != "None"
            }
            | annotators(),
            "update_every": values.integers(at_least=1, at_most=3),
            "progress": values.flags(),
        },
    ),
    "SequentialSelector": Call(
        ask_and_tell,
        MODEL | {"acquisition": "margin", "candidates": None, "generator": torch.Generator(), "labelled": None},
        {**ANYWHERE, **PICKING},
    ),
    "look_ahead": Call(
        look_ahead,
        MODEL
        | {"batches": BATCHES, "targets": LABELS, "eval_features": POINTS, "eval_targets": TRUTH, "loss": "brier"},
        {
            **ANYWHERE,
            **AT_POINTS,
            "batches": {
                **rows(BATCHES, "batches"),
                "no rows in a batch": Bad(BATCHES[:, :0], ValueError, r"must hold at least one row each, got \(2, 0\)"),
            },
            "targets": values.labels(LABELS, 4),
            "eval_targets": {words: bad for words, bad in values.labels(TRUTH, 4).items() if words != "None"}
            | {"None": Bad(None, ValueError, "must be given for loss='brier'")},
            "loss": values.choices(),
        },
    ),
    "expected_error_reduction": Call(
        expected_error_reduction,
        MODEL | {"eval_features": POINTS, "loss": "expected_zero_one"},
        {**ANYWHERE, **AT_POINTS, "loss": {**values.choices_not_none(), "brier": Bad("brier", ValueError, "must")}},
    ),
    "expected_error_reduction (shared)": Call(
        expected_error_reduction,
        MODEL | {"eval_features": POINTS, "step": "newton", "link": "plugin"},
        {"pool": ANYWHERE["pool"]},
    ),
    "select_lookahead": Call(
        select_lookahead,
        MODEL
        | {"eval_features": POINTS, "batch_size": 3, "n_batches": 6, "targets": "predicted", "eval_targets": None}
        | {"loss": None, "proposals": ("random", "informative"), "n_label_samples": 1, "generator": torch.Generator()}
        | {"candidates": None, "labelled": None},
        {
            **ANYWHERE,
            **AT_POINTS,
            "batch_size": values.integers(at_least=1, at_most=N),
            "n_batches": values.integers(at_least=2),
            "n_label_samples": values.integers(at_least=1),
            "targets": sources("'predicted', 'sampled'"),
            "eval_targets": {words: bad for words, bad in values.labels(TRUTH, 4).items() if words != "None"},
            "loss": values.choices(),
            "proposals": {
                "None": Bad(None, TypeError, "must be a sequence of names and callables, got NoneType"),
                "int": Bad(3, TypeError, "must be a sequence of names and callables, got int"),
                "a callable alone": Bad(max, TypeError, "must be a sequence of names and callables, got builtin_fun"),
                "none at all": Bad((), ValueError, "must name at least one source"),
                "unknown": Bad(("random", "bogus"), ValueError, "must be one of .*, got 'bogus'"),
                "nested": Bad([["random"]], ValueError, "must be one of"),
                "None among them": Bad(("badge", None), ValueError, "must be one of .*, got None"),
                "a NaN": Bad(
                    (lambda _, x: put(x[:, 0], math.nan),), ValueError, r"\[0\] gave a utility that is not a number"
                ),
            },
            "generator": values.generators(),
            "candidates": PICKING["candidates"],
            "labelled": LABELLED,
        },
    ),
}


# Every other acquisition, because each computes with these arguments in its own way.
for name in ACQUISITIONS[1:]:
    allowed = {"link": {words: bad for words, bad in ANYWHERE["link"].items() if name != "bald" or words != "mc"}}
    far = values.overflowing(KNOWN) if name in ("coreset", "probcover", "typiclust") else {}
    arguments = MODEL | {"acquisition": name, "candidates": None, "generator": None, "labelled": KNOWN}
    bad = STATEFUL | allowed | {"labelled": LABELLED | far}
    CALLS[f"select_batch ({name})"] = Call(select_batch, arguments | {"batch_size": 3}, bad)
    CALLS[f"SequentialSelector ({name})"] = Call(ask_and_tell, arguments, bad)


@pytest.mark.parametrize(("call", "argument", "bad"), cases(CALLS))
def test_wrong_argument(call: Call, argument: str, bad: Bad) -> None:
    check_error(call, argument, bad)


@pytest.mark.parametrize("name", CALLS)
def test_the_other_arguments_are_accepted(name: str) -> None:
    CALLS[name].function(**fresh(CALLS[name]))


@pytest.mark.parametrize(("argument", "value"), [("link", "bogus"), ("acquisition", "bogus"), ("acquisition", ["x"])])
def test_a_wrong_name_is_reported_before_errors_that_follow_from_it(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{argument} must be one of"):
        select_batch(LA, POOL, 3, targets=None, **{argument: value})


class InterruptedByUserError(Exception):
    """An error that the annotator raises."""


def test_an_error_of_the_annotator_reaches_the_caller() -> None:
    asked: list[int] = []

    def annotate(row: int) -> int:
        asked.append(row)
        if len(asked) == 3:
            raise InterruptedByUserError
        return 0

    model = LA.clone().update(POOL[:2], LABELS[:2])
    before = bits(model)
    with pytest.raises(InterruptedByUserError):
        select_batch(model, POOL, 5, targets=annotate)
    assert len(asked) == 3
    assert bits(model) == before


def test_no_label_is_asked_for_when_a_utility_is_nan() -> None:
    asked: list[int] = []
    with pytest.raises(ValueError, match="acquisition gave a utility that is not a number"):
        select_batch(LA, POOL, 2, lambda _, x: torch.full((len(x),), math.nan), lambda row: asked.append(row) or 0)
    assert asked == []


# Arguments that must be accepted


@pytest.mark.parametrize("update_every", [1, 2, 5])
@pytest.mark.parametrize("allowed", [[], [9, 5], list(range(0, N, 2))], ids=["none", "two", "half"])
def test_minus_infinity_comes_last_and_never_twice(allowed: list[int], update_every: int) -> None:
    def acquisition(_: LastLayerLaplace, pool: Tensor) -> Tensor:
        return torch.full((len(pool),), -math.inf).index_fill(0, torch.tensor(allowed, dtype=torch.int64), 1.0)

    picks = select_batch(LA, POOL, 5, acquisition, update_every=update_every).indices.tolist()
    others = [row for row in range(N) if row not in allowed]
    assert picks == (sorted(allowed) + others)[:5]


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("answer", [torch.tensor(2), torch.tensor([2]), np.int64(2), 2])
def test_an_annotator_may_give_integers_of_every_type(answer: object, link: str) -> None:
    given = select_batch(LA, POOL, 3, targets=lambda _: answer, link=link)
    expected = select_batch(LA, POOL, 3, targets=torch.full((N,), 2), link=link)
    assert torch.equal(given.posterior.mean, expected.posterior.mean)


@pytest.mark.parametrize("gamma", values.GOOD_NUMBERS, ids=lambda value: type(value).__name__)
def test_gamma_of_every_kind_is_accepted(gamma: float) -> None:
    arguments = LA, POOL, BATCHES, LABELS, POINTS
    assert torch.equal(look_ahead(*arguments, gamma=gamma), look_ahead(*arguments))
    assert torch.equal(
        expected_error_reduction(LA, POOL, POINTS, gamma=gamma), expected_error_reduction(LA, POOL, POINTS)
    )
    result, expected = select_batch(LA, POOL, 3, gamma=gamma), select_batch(LA, POOL, 3)
    assert torch.equal(result.posterior.mean, expected.posterior.mean)


def everything(model: LastLayerLaplace, pool: Tensor, labels: Tensor, points: Tensor, link: str) -> list[Tensor]:
    """What each function returns on one problem, as tensors."""
    batch = torch.arange(len(pool))[None]
    selector = SequentialSelector(model, pool, link=link)
    selector.tell(selector.ask(), 1)
    results: list[SelectionResult] = [
        *(
            select_batch(model, pool, len(pool), name, labels, link=link)
            for name in ("margin", "variance", "gradient_norm", lambda posterior, x: posterior.predict_logits(x)[:, 0])
        ),
        select_lookahead(model, pool, points, len(pool), 3, proposals="random", link=link, generator=torch.Generator()),
    ]
    return [
        *(part for result in results for part in (result.indices, result.utilities, result.posterior.mean)),
        selector.posterior.mean,
        look_ahead(model, pool, batch, labels, points, link=link),
        expected_error_reduction(model, pool, points, link=link),
    ]


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("n_pool", [1, 2])
def test_the_smallest_problem(dtype: torch.dtype, link: str, n_pool: int) -> None:
    """Two classes, one feature, and a pool of one or two rows."""
    model = LastLayerLaplace.fit_map(torch.tensor([[2.0], [-1.0]], dtype=dtype), torch.tensor([1, 0]), 2)
    pool = torch.tensor([[0.5], [3.0]], dtype=dtype)[:n_pool]
    for result in everything(model, pool, torch.ones(n_pool, dtype=torch.int64), pool[:1], link):
        assert bool(result.isfinite().all())


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
def test_pools_of_every_kind_give_the_same_results(link: str) -> None:
    pool, points = POOL[:6], POINTS[:4]
    expected = everything(LA, pool, LABELS[:6], points, link)
    for change in (
        lambda x: torch.nn.Parameter(x.clone()),
        lambda x: x.T.contiguous().T,
        lambda x: torch.stack([x, x], 2)[:, :, 0],
    ):
        for result, wanted in zip(
            everything(LA, change(pool), LABELS[:6], change(points), link), expected, strict=True
        ):
            torch.testing.assert_close(result, wanted, rtol=1e-9, atol=1e-12)
            assert not result.requires_grad


def test_an_empty_pool_has_no_scores_and_no_picks() -> None:
    assert expected_error_reduction(LA, POOL[:0], POINTS).shape == (0,)
    with pytest.raises(ValueError, match=r"^no row is left to pick: pool has 0 rows, of which candidates and "):
        select_batch(LA, POOL[:0], 1)
    with pytest.raises(ValueError, match=r"^no row is left to ask for: all 0 have a label or are skipped; undo"):
        SequentialSelector(LA, POOL[:0]).ask()
