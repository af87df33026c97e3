"""Batches: every pick is the one that scoring the whole pool with a freshly updated model would make."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import rich.progress
import torch
from torch import Tensor

import lapal_ext
from lapal_ext import LastLayerLaplace, NotFittedError, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.likelihood import CURVATURES, STEPS
from lapal_ext.selection.label_sources import draw_labels
from lapal_ext.selection.selection_result import SelectionResult
from lapal_ext.utilities import UTILITIES
from tests.draws import Draw
from tests.problems import Problem, make_problem

B = 12


def utilities_by_definition(posterior: LastLayerLaplace, pool: Tensor, kind: str, link: str) -> Tensor:
    p = posterior.predict_proba(pool, link=link)
    first, second = p.topk(2, dim=1).values.unbind(1)
    if kind == "margin":
        return 1 - (first - second)
    if kind == "entropy":
        return -(p * p.log()).sum(1)
    if kind == "least_confident":
        return 1 - first
    if kind == "variance":
        return posterior.predict_latent(pool).variance
    gradient = torch.nn.functional.one_hot(p.argmax(1), p.shape[1]) - p
    return gradient.norm(dim=1) * posterior.standardization.standardized(pool).norm(dim=1)


def brute_force(
    problem: Problem,
    kind: str,
    link: str,
    label_of: Callable[[LastLayerLaplace, int], int],
    step: str = "line_search",
    gamma: float = 1.0,
    update_every: int = 1,
    batch_size: int = B,
) -> tuple[list[int], list[float], LastLayerLaplace]:
    posterior, picks, values = problem.posterior.clone(), [], []
    while len(picks) < batch_size:
        utilities = utilities_by_definition(posterior, problem.pool, kind, link)
        utilities[picks] = -math.inf
        group = utilities.sort(descending=True, stable=True).indices[: min(update_every, batch_size - len(picks))]
        labels = torch.tensor([label_of(posterior, int(row)) for row in group])
        picks += group.tolist()
        values += utilities[group].tolist()
        posterior.update(problem.pool[group], labels, step, gamma)
    return picks, values, posterior


def assert_same(result: lapal_ext.SelectionResult, expected: tuple[list[int], list[float], LastLayerLaplace]) -> None:
    picks, values, posterior = expected
    assert result.indices.tolist() == picks
    torch.testing.assert_close(result.utilities, torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.posterior.mean, posterior.mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(result.posterior.covariance, posterior.covariance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("kind", UTILITIES)
def test_picks_equal_brute_force(kind: str, link: str, curvature: str, step: str) -> None:
    problem = make_problem(curvature=curvature)
    before = problem.posterior.clone()
    true = brute_force(problem, kind, link, lambda _, row: int(problem.labels[row]), step)
    assert_same(select_batch(problem.posterior, problem.pool, B, kind, problem.labels, step, link=link), true)
    predicted = brute_force(
        problem, kind, link, lambda p, row: int(p.predict_logits(problem.pool[row : row + 1]).argmax()), step
    )
    assert_same(select_batch(problem.posterior, problem.pool, B, kind, "predicted", step, link=link), predicted)
    assert all(torch.equal(a, b) for a, b in zip(before.buffers(), problem.posterior.buffers(), strict=True))


@pytest.mark.parametrize("update_every", [1, 2, 5, B])
@pytest.mark.parametrize("link", ["plugin", "mean_field"])
def test_picks_equal_brute_force_with_an_update_every_few_picks(update_every: int, link: str) -> None:
    problem = make_problem()
    expected = brute_force(problem, "entropy", link, lambda _, row: int(problem.labels[row]), update_every=update_every)
    result = select_batch(
        problem.posterior, problem.pool, B, "entropy", problem.labels, update_every=update_every, link=link
    )
    assert_same(result, expected)


def test_an_annotator_is_asked_in_pick_order_and_gives_the_same_batch() -> None:
    problem = make_problem()
    asked = []

    def annotate(row: int) -> int:
        asked.append(row)
        return int(problem.labels[row])

    result = select_batch(problem.posterior, problem.pool, B, targets=annotate)
    given = select_batch(problem.posterior, problem.pool, B, targets=problem.labels)
    assert asked == result.indices.tolist() == given.indices.tolist()
    assert torch.equal(result.posterior.mean, given.posterior.mean)


def test_sampled_labels_repeat_with_their_generator() -> None:
    problem = make_problem(n_classes=2)
    batches = [
        select_batch(
            problem.posterior, problem.pool, 30, targets="sampled", generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(batches[0].posterior.mean, batches[1].posterior.mean)
    assert not torch.equal(batches[0].posterior.mean, batches[2].posterior.mean)


def test_sampled_labels_follow_the_predictive() -> None:
    problem = make_problem(n_classes=3, n_pool=2000)
    p = problem.posterior.predict_proba(problem.pool, link="plugin")
    drawn = [draw_labels(p, torch.Generator().manual_seed(seed)) for seed in range(20)]
    seen = torch.cat(drawn).bincount(minlength=3)
    expected = 20 * p.sum(0)
    assert bool(((seen - expected).abs() < 5 * (20 * (p * (1 - p)).sum(0)).sqrt()).all())


def test_without_labels_margin_is_top_b_and_variance_is_updated() -> None:
    problem = make_problem()
    top = select_batch(problem.posterior, problem.pool, B, targets=None)
    scores = utilities_by_definition(problem.posterior, problem.pool, "margin", "plugin")
    assert top.indices.tolist() == scores.sort(descending=True, stable=True).indices[:B].tolist()
    assert torch.equal(top.posterior.covariance, problem.posterior.covariance)
    assert top.posterior is not problem.posterior
    spread = select_batch(problem.posterior, problem.pool, B, "variance", targets=None, update_every=1)
    assert torch.equal(spread.posterior.mean, problem.posterior.mean)
    assert spread.posterior.covariance.trace() < problem.posterior.covariance.trace()
    expected = brute_force(problem, "variance", "plugin", lambda *_: 0, gamma=0.0)
    assert_same(spread, expected)
    with pytest.raises(ValueError, match="targets=None absorbs no labels"):
        select_batch(problem.posterior, problem.pool, B, "margin", targets=None, update_every=1)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_auto_absorbs_predicted_labels_unless_a_batch_spreads_without_them(name: str) -> None:
    problem = make_problem()

    def pick(**arguments: object) -> SelectionResult:
        return select_batch(
            problem.posterior, problem.pool, B, name, generator=torch.Generator().manual_seed(0), **arguments
        )

    auto = pick()
    spreads = name not in (*UTILITIES, "bald")
    same = pick(targets=None) if spreads else pick(targets="predicted", update_every=1)
    assert torch.equal(auto.indices, same.indices)
    assert torch.equal(auto.posterior.mean, same.posterior.mean)
    assert torch.equal(auto.posterior.mean, problem.posterior.mean) == spreads
    every = pick(update_every=2)
    assert torch.equal(every.indices, pick(targets="predicted", update_every=2).indices)
    assert not torch.equal(every.posterior.mean, problem.posterior.mean)


def test_auto_calls_a_callable_with_a_model_that_has_absorbed_the_picks() -> None:
    problem = make_problem()
    means = []

    def acquisition(posterior: LastLayerLaplace, pool: Tensor) -> Tensor:
        means.append(posterior.mean.clone())
        return pool[:, 0]

    select_batch(problem.posterior, problem.pool, 3, acquisition)
    assert len(means) == 3
    assert not torch.equal(means[0], means[1])


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
@pytest.mark.parametrize("update_every", [1, 3])
def test_excluded_rows_are_part_of_the_pool_and_never_picked(acquisition: str, update_every: int) -> None:
    problem = make_problem()

    def pick(exclude: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        common = problem.posterior, problem.pool, 6, acquisition, problem.labels
        return select_batch(*common, update_every=update_every, generator=generator, exclude=exclude).indices

    first = pick(None)
    assert not set(first.tolist()) & set(pick(first).tolist())
    assert torch.equal(pick(first[:0]), first)


def test_excluded_rows_have_no_influence_on_margin() -> None:
    problem = make_problem()
    excluded = torch.tensor([17, 2, 40])
    candidates = torch.tensor([row for row in range(len(problem.pool)) if row not in excluded.tolist()])
    picks = [
        select_batch(problem.posterior, problem.pool, B, targets=problem.labels, **chosen)
        for chosen in ({"exclude": excluded}, {"candidates": candidates})
    ]
    assert torch.equal(picks[0].indices, picks[1].indices)
    with pytest.raises(ValueError, match="exclude must be candidates"):
        select_batch(problem.posterior, problem.pool, 1, candidates=candidates, exclude=excluded)
    with pytest.raises(ValueError, match=r"batch_size must be at most 2 \(the rows that may be picked\)"):
        select_batch(problem.posterior, problem.pool, 3, exclude=torch.arange(len(problem.pool) - 2))


def test_rows_outside_the_candidates_have_no_influence() -> None:
    problem = make_problem()
    candidates = torch.tensor([41, 3, 50, 22, 7, 19, 0, 33, 58, 11, 12, 13, 14])
    ordered = candidates.sort().values
    inside = Problem(problem.posterior, problem.pool[ordered], problem.labels[ordered], *problem[3:])
    result = select_batch(problem.posterior, problem.pool, B, targets=problem.labels, candidates=candidates)
    alone = select_batch(problem.posterior, inside.pool, B, targets=inside.labels)
    assert result.indices.tolist() == ordered[alone.indices].tolist()
    assert torch.equal(result.posterior.mean, alone.posterior.mean)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_callable_may_return_an_array(dtype: type) -> None:
    problem = make_problem()
    for targets in (None, "predicted"):
        picks = [
            select_batch(
                problem.posterior, problem.pool, 5, lambda _, pool, make=make: make(pool[:, 0]), targets=targets
            )
            for make in (lambda column: column, lambda column: column.numpy().astype(dtype))
        ]
        assert torch.equal(picks[0].indices, picks[1].indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_callable_must_not_change_the_pool(dtype: torch.dtype) -> None:
    problem = make_problem(dtype=torch.float32 if dtype == torch.float16 else dtype)
    pool = problem.pool.to(dtype)

    def centred(_: LastLayerLaplace, rows: Tensor) -> Tensor:
        rows -= rows.mean(0)
        return rows[:, 0]

    with pytest.raises(ValueError, match=r"^acquisition must not change the rows that it gets in place"):
        select_batch(problem.posterior, pool, 3, centred)
    with torch.inference_mode():  # whose tensors have no count of changes
        made_there = pool.clone()
    assert len(select_batch(problem.posterior, made_there, 3, lambda _, rows: rows[:, 0]).indices) == 3


def test_a_callable_sees_the_updated_model() -> None:
    problem = make_problem()
    result = select_batch(
        problem.posterior,
        problem.pool,
        B,
        lambda posterior, pool: utilities_by_definition(posterior, pool, "margin", "plugin"),
        problem.labels,
    )
    expected = brute_force(problem, "margin", "plugin", lambda _, row: int(problem.labels[row]))
    assert_same(result, expected)


def test_random_is_uniform_and_repeatable() -> None:
    problem = make_problem(n_pool=10)
    counts = torch.zeros(10)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        picks = select_batch(problem.posterior, problem.pool, 3, "random", generator=generator).indices
        assert len(set(picks.tolist())) == 3
        counts[picks] += 1
    assert bool(((counts - 120).abs() < 5 * math.sqrt(400 * 0.3 * 0.7)).all())
    again = select_batch(problem.posterior, problem.pool, 3, "random", generator=generator.manual_seed(399)).indices
    assert torch.equal(picks, again)


def test_ties_go_to_the_lowest_row(dtype: torch.dtype) -> None:
    problem = make_problem(dtype=dtype)
    doubled = torch.cat([problem.pool, problem.pool])
    for update_every in (1, 6):
        result = select_batch(
            problem.posterior, doubled, 6, targets=problem.labels.repeat(2), update_every=update_every
        )
        single = [int(row) % len(problem.pool) for row in result.indices]
        first_seen: set[int] = set()
        for row, original in zip(result.indices.tolist(), single, strict=True):
            assert row == original or original in first_seen
            first_seen.add(original)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_pools_pick_like_their_float32_copies(half: torch.dtype) -> None:
    problem = make_problem(dtype=torch.float32, n_pool=200)
    stored = problem.pool.to(half)
    for link in ("plugin", "mean_field"):
        kept = select_batch(problem.posterior, stored, B, targets=problem.labels, link=link)
        widened = select_batch(problem.posterior, stored.float(), B, targets=problem.labels, link=link)
        assert kept.indices.tolist() == widened.indices.tolist()
        torch.testing.assert_close(kept.utilities, widened.utilities)


@pytest.mark.parametrize("batch_size", [1, 60])
def test_one_row_or_the_whole_pool_can_be_picked(batch_size: int) -> None:
    problem = make_problem()
    result = select_batch(problem.posterior, problem.pool, batch_size)
    assert len(set(result.indices.tolist())) == batch_size == len(result.utilities)


def test_layout_of_the_pool_does_not_matter() -> None:
    problem = make_problem()
    expected = select_batch(problem.posterior, problem.pool, B).indices
    spread = torch.empty(60, 24, dtype=torch.float64)[:, ::2].copy_(problem.pool)
    for pool in (problem.pool.T.contiguous().T, spread):
        assert torch.equal(select_batch(problem.posterior, pool, B).indices, expected)


def test_an_unfitted_posterior_and_nan_utilities_are_refused(draw: Draw) -> None:
    problem = make_problem()
    with pytest.raises(NotFittedError):
        select_batch(LastLayerLaplace(draw.normal(3, 12)), problem.pool, 3)
    with pytest.raises(ValueError, match="acquisition gave a utility that is not a number"):
        select_batch(problem.posterior, problem.pool, 3, lambda _, pool: pool[:, 0] * float("nan"))


def test_progress_counts_picks_and_changes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    quiet = select_batch(problem.posterior, problem.pool, B, update_every=5)
    advances = []

    def count_picks(_: rich.progress.Progress, _task: rich.progress.TaskID, picks: int) -> None:
        advances.append(picks)

    monkeypatch.setattr(rich.progress.Progress, "advance", count_picks)
    shown = select_batch(problem.posterior, problem.pool, B, update_every=5, progress=True)
    assert torch.equal(quiet.indices, shown.indices)
    assert advances == [5, 5, 2]


SCRIPT = """
import torch
from lapal_ext import build_info, look_ahead, select_batch
from tests.problems import make_problem
p = make_problem(n_classes=7, n_pool=500, dtype=torch.float32)
for kind in ("margin", "entropy", "least_confident", "variance", "gradient_norm"):
    for link in ("plugin", "mean_field"):
        print(*select_batch(p.posterior, p.pool, 20, kind, link=link).indices.tolist())
batches = torch.arange(500).view(100, 5)
for link in ("plugin", "mean_field"):
    print(int(look_ahead(p.posterior, p.pool, batches, p.labels, p.eval_features, link=link).argmin()))
print("native" if build_info()["native"] else "reference")
"""


def test_the_same_picks_without_native_code() -> None:
    """In two new processes; without compiled kernels both run the references."""

    def run(**environment: str) -> list[str]:
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
        return done.stdout.splitlines()

    reference = run(LAPAL_EXT_BACKEND="reference")
    assert reference[-1] == "reference"
    assert run()[:-1] == reference[:-1]


def test_print_lists_rows_and_no_matrix() -> None:
    problem = make_problem()
    shown = repr(select_batch(problem.posterior, problem.pool, 12))
    assert shown.startswith("SelectionResult(12 rows: ")
    assert len(re.findall(r"\d+", shown.partition("utilities")[0])) == 11  # the count and ten of the rows
    assert ", …, utilities " in shown
    assert "12 labels absorbed" in shown
    assert "tensor" not in shown
