"""Herding: greedy maximisation of the coverage, with every gain computed for every pick."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, SequentialSelector, select_batch
from lapal_ext.acquisition.kernel_rows import KernelRows
from tests.acquisition.dense import distances, first_largest
from tests.draws import Draw
from tests.problems import Problem, make_problem

B = 10
NAMES = ("uherding", "maxherding")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def units(posterior: LastLayerLaplace, features: Tensor) -> Tensor:
    """Directions of the features; a row at the centre is at right angles to all others."""
    rows = features - posterior.centre
    norms = rows.norm(dim=1, keepdim=True)
    own = (norms == 0).to(rows.dtype)
    return torch.cat([rows / torch.where(norms > 0, norms, 1.0), own], 1)


def median_nearest(points: Tensor) -> float | None:
    """Squared distance to the nearest point that is no copy, the lower median."""
    squares = distances(points, points).square()
    squares[squares < 1e-12] = torch.inf
    nearest = squares.amin(1) if len(points) else torch.zeros(0)
    nearest = nearest[nearest.isfinite()]
    return float(nearest.sort().values[(len(nearest) - 1) // 2]) if len(nearest) else None


def margins(posterior: LastLayerLaplace, features: Tensor) -> Tensor:
    top = posterior.predict_proba(features, "plugin").topk(2, dim=1).values
    return 1 - (top[:, 0] - top[:, 1])


def by_definition(
    problem: Problem,
    pool: Tensor,
    labelled: Tensor,
    *,
    uncertainty: Callable[[LastLayerLaplace], Tensor],
    update_every: int = 1000,
    references: Tensor | None = None,
    count: int = B,
) -> tuple[list[int], Tensor]:
    posterior = problem.posterior.clone()
    rows, known = units(posterior, pool), units(posterior, labelled)
    summed = rows if references is None else rows[references]
    h2 = (median_nearest(known) or 0.0) * min(1.0, math.sqrt(100 / max(1, len(known))))
    h2 = h2 or median_nearest(summed) or 1.0

    def kernel(points: Tensor) -> Tensor:
        return (-distances(points, summed).square() / h2).exp()

    covered = torch.cat([kernel(known), torch.zeros(1, len(summed), dtype=pool.dtype)]).amax(0)
    picks: list[int] = []
    values = []
    u = uncertainty(posterior)
    for number in range(count):
        if number > 0 and number % update_every == 0:
            new = pool[picks[-update_every:]]
            posterior.update(new, posterior.predict_logits(new).argmax(1))
            u = uncertainty(posterior)
        gains = (kernel(rows) - covered).clamp(min=0.0) @ u
        picks.append(first_largest(gains, picks))
        values.append(gains[picks[-1]])
        covered = torch.maximum(covered, kernel(rows[picks[-1:]])[0])
    return picks, torch.stack(values)


def assert_same(result: object, expected: tuple[list[int], Tensor]) -> None:
    assert result.indices.tolist() == expected[0]  # type: ignore[attr-defined]
    torch.testing.assert_close(result.utilities, expected[1], rtol=1e-9, atol=1e-12)  # type: ignore[attr-defined]


@pytest.mark.parametrize("memory", [None, 4000.0, 1.0])
@pytest.mark.parametrize("labelled", [0, 1, 2, 37, 148])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("name", NAMES)
def test_picks_are_those_of_the_definition(name: str, n_classes: int, labelled: int, memory: float | None) -> None:
    problem = make_problem(n_classes=n_classes, n_pool=150)
    pool = torch.cat([problem.pool, problem.pool[:30]])
    given = make_problem(n_classes=n_classes, n_pool=148, seed=1).pool[:labelled]
    result = select_batch(problem.posterior, pool, 40, name, labelled=given, memory=memory)

    def uncertainty(posterior: LastLayerLaplace) -> Tensor:
        return margins(posterior, pool) if name == "uherding" else torch.ones(len(pool), dtype=pool.dtype)

    assert_same(result, by_definition(problem, pool, given, uncertainty=uncertainty, count=40))
    assert torch.equal(result.posterior.mean, problem.posterior.mean)  # nothing was absorbed


@pytest.mark.parametrize("memory", [None, 1.0])
@pytest.mark.parametrize("update_every", [1, 4])
def test_the_uncertainty_is_that_of_the_model_that_has_absorbed_the_picks(
    update_every: int, memory: float | None
) -> None:
    problem = make_problem(n_pool=100)
    result = select_batch(
        problem.posterior,
        problem.pool,
        B,
        "uherding",
        update_every=update_every,
        labelled=problem.eval_features,
        memory=memory,
    )
    expected = by_definition(
        problem,
        problem.pool,
        problem.eval_features,
        uncertainty=lambda posterior: margins(posterior, problem.pool),
        update_every=update_every,
    )
    assert_same(result, expected)
    assert not torch.equal(result.posterior.mean, problem.posterior.mean)


def test_uherding_is_the_default_where_labelled_rows_are_given() -> None:
    problem = make_problem()
    named = select_batch(problem.posterior, problem.pool, B, "uherding", labelled=problem.eval_features)
    default = select_batch(problem.posterior, problem.pool, B, labelled=problem.eval_features)
    assert torch.equal(default.indices, named.indices)
    selector = SequentialSelector(problem.posterior, problem.pool, labelled=problem.eval_features)
    assert selector.ask(B).tolist() == named.indices.tolist()
    without = select_batch(problem.posterior, problem.pool, B)
    assert torch.equal(without.indices, select_batch(problem.posterior, problem.pool, B, "margin").indices)


class TestUncertainty:
    def test_another_utility(self) -> None:
        problem = make_problem()
        result = select_batch(
            problem.posterior, problem.pool, B, "uherding", labelled=problem.eval_features, uncertainty="entropy"
        )

        def entropy(posterior: LastLayerLaplace) -> Tensor:
            return torch.special.entr(posterior.predict_proba(problem.pool, "plugin")).sum(1)

        expected = by_definition(problem, problem.pool, problem.eval_features, uncertainty=entropy)
        assert_same(result, expected)

    @pytest.mark.parametrize("update_every", [1, B])
    def test_numbers_stay_the_same_whatever_is_absorbed(self, update_every: int, draw: Draw) -> None:
        problem = make_problem()
        numbers = draw.uniform(len(problem.pool))
        result = select_batch(
            problem.posterior,
            problem.pool,
            B,
            "uherding",
            labelled=problem.eval_features,
            uncertainty=numbers,
            update_every=update_every,
        )
        expected = by_definition(problem, problem.pool, problem.eval_features, uncertainty=lambda _: numbers)
        assert_same(result, expected)

    def test_numbers_count_all_rows_of_the_pool_candidates_or_not(self, draw: Draw) -> None:
        problem = make_problem()
        numbers, candidates = draw.uniform(60), torch.arange(1, 60, 3)
        result = select_batch(
            problem.posterior, problem.pool, 5, "uherding", uncertainty=numbers, candidates=candidates
        )
        alone = select_batch(
            problem.posterior, problem.pool[candidates], 5, "uherding", uncertainty=numbers[candidates]
        )
        assert torch.equal(result.indices, candidates[alone.indices])

    def test_a_selector_keeps_its_own_copy(self, draw: Draw) -> None:
        problem = make_problem()
        numbers = draw.uniform(60)
        selector = SequentialSelector(problem.posterior, problem.pool, "uherding", uncertainty=numbers)
        expected = SequentialSelector(problem.posterior, problem.pool, "uherding", uncertainty=numbers.clone())
        numbers.zero_()
        selector.tell(3, 1)
        expected.tell(3, 1)
        assert torch.equal(selector.ask(), expected.ask())
        selector.undo()
        expected.undo()
        assert torch.equal(selector.ask(), expected.ask())

    @pytest.mark.parametrize(
        ("value", "error", "says"),
        [
            ("bogus", ValueError, "must be one of 'margin', "),
            (torch.ones(59, dtype=torch.float64), ValueError, r"must have shape \(60,\), one number per row"),
            (torch.full((60,), -1.0, dtype=torch.float64), ValueError, "must be at least 0, got -1"),
            (torch.full((60,), float("nan"), dtype=torch.float64), ValueError, "must be finite"),
            (torch.ones(60, dtype=torch.int64), TypeError, "must be the name of a utility or floating point"),
            (0.5, TypeError, "must be a torch.Tensor"),
        ],
        ids=str,
    )
    def test_what_it_must_be(self, value: object, error: type[Exception], says: str) -> None:
        problem = make_problem()
        for call in (select_batch, SequentialSelector):
            arguments = {"acquisition": "uherding", "uncertainty": value}
            with pytest.raises(error, match=f"^uncertainty {says}"):
                call(problem.posterior, problem.pool, **arguments)

    def test_an_error_names_it_where_its_sums_overflow(self) -> None:
        problem = make_problem()
        with pytest.raises(ValueError, match=r"^uncertainty must give results that are finite"):
            select_batch(
                problem.posterior,
                problem.pool,
                3,
                "uherding",
                uncertainty=torch.full((60,), 1e308, dtype=torch.float64),
            )

    @pytest.mark.parametrize("name", ["margin", "maxherding", "coreset"])
    def test_other_strategies_refuse_it(self, name: str) -> None:
        problem = make_problem()
        with pytest.raises(ValueError, match=f"^uncertainty must be None for acquisition '{name}'"):
            select_batch(problem.posterior, problem.pool, 3, name, uncertainty="entropy")


class TestReferences:
    @pytest.mark.parametrize("name", NAMES)
    def test_rows(self, name: str) -> None:
        problem = make_problem()
        references = torch.tensor([7, 3, 50, 11, 12, 13, 44])
        result = select_batch(
            problem.posterior, problem.pool, B, name, labelled=problem.eval_features, references=references
        )

        def uncertainty(posterior: LastLayerLaplace) -> Tensor:
            rows = problem.pool[references]
            return margins(posterior, rows) if name == "uherding" else torch.ones(7, dtype=rows.dtype)

        expected = by_definition(
            problem, problem.pool, problem.eval_features, uncertainty=uncertainty, references=references
        )
        assert_same(result, expected)

    def test_rows_that_are_no_candidates(self) -> None:
        problem = make_problem()
        references, candidates = torch.arange(0, 60, 2), torch.arange(1, 60, 2)
        given = {"labelled": problem.eval_features}
        result = select_batch(
            problem.posterior, problem.pool, 5, "maxherding", candidates=candidates, references=references, **given
        )
        every = torch.cat([problem.pool[candidates], problem.pool[references]])
        alone = select_batch(
            problem.posterior,
            every,
            5,
            "maxherding",
            references=torch.arange(30, 60),
            exclude=torch.arange(30, 60),
            **given,
        )
        assert torch.equal(result.indices, candidates[alone.indices])

    def test_a_number_draws_as_many_candidates_with_the_generator(self) -> None:
        problem = make_problem()
        used = generator()
        result = select_batch(problem.posterior, problem.pool, B, "uherding", references=20, generator=used)
        assert not torch.equal(used.get_state(), generator().get_state())
        again = select_batch(problem.posterior, problem.pool, B, "uherding", references=20, generator=generator())
        assert torch.equal(result.indices, again.indices)
        others = {
            tuple(select_batch(problem.posterior, problem.pool, B, "uherding", references=20, generator=used).indices)
            for _ in range(5)
        }
        assert len(others) > 1

    def test_a_number_of_all_rows_or_more_draws_nothing(self) -> None:
        problem = make_problem()
        expected = select_batch(problem.posterior, problem.pool, B, "uherding").indices
        for number in (60, 61, 10**9):
            used = generator()
            result = select_batch(problem.posterior, problem.pool, B, "uherding", references=number, generator=used)
            assert torch.equal(result.indices, expected)
            assert torch.equal(used.get_state(), generator().get_state())

    def test_a_large_pool_is_summed_over_a_sample(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = make_problem()
        sample = select_batch(problem.posterior, problem.pool, B, "uherding", references=20, generator=generator())
        monkeypatch.setattr("lapal_ext.acquisition.references.MOST_REFERENCES", 20)
        default = select_batch(problem.posterior, problem.pool, B, "uherding", generator=generator())
        assert torch.equal(default.indices, sample.indices)

    def test_a_selector_asks_the_same_after_undo_and_resuming(self) -> None:
        problem = make_problem()

        def start(seed: int) -> SequentialSelector:
            return SequentialSelector(
                problem.posterior, problem.pool, "uherding", references=20, generator=generator(seed)
            )

        selector, resumed = start(1), start(2)
        first = selector.ask(3)
        selector.tell(first[:1], problem.labels[first[:1]])
        resumed.load_state_dict(selector.state_dict())
        assert torch.equal(resumed.ask(3), selector.ask(3))
        selector.undo()
        assert torch.equal(selector.ask(3), first)

    @pytest.mark.parametrize(
        ("value", "error", "says"),
        [
            (0, ValueError, "must be at least 1, got 0"),
            (True, TypeError, "must be an integer, got bool"),
            (2.0, TypeError, "must be an integer, got float"),
            (torch.tensor([60]), ValueError, r"must lie in \[0, 60\), one of the rows of pool, got 60"),
            (torch.tensor([1, 1]), ValueError, "must not hold duplicates, got 1"),
            (torch.tensor([0.5]), TypeError, "must hold integers"),
            (torch.zeros(0, dtype=torch.int64), ValueError, "must hold at least one row"),
        ],
        ids=str,
    )
    def test_what_they_must_be(self, value: object, error: type[Exception], says: str) -> None:
        problem = make_problem()
        for call in (select_batch, SequentialSelector):
            with pytest.raises(error, match=f"^references {says}"):
                call(problem.posterior, problem.pool, acquisition="maxherding", references=value)

    def test_other_strategies_refuse_them(self) -> None:
        problem = make_problem()
        with pytest.raises(ValueError, match=r"^references must be None for acquisition 'margin'"):
            select_batch(problem.posterior, problem.pool, 3, "margin", references=20)


class TestEdges:
    @pytest.mark.parametrize("name", NAMES)
    def test_labelled_rows_that_are_all_copies_give_no_bandwidth(self, name: str, dtype: torch.dtype) -> None:
        problem = make_problem(dtype=dtype)
        one = problem.eval_features[:1]
        copies = select_batch(problem.posterior, problem.pool, B, name, labelled=one.repeat(5, 1))
        alone = select_batch(problem.posterior, problem.pool, B, name, labelled=one)
        assert torch.equal(copies.indices, alone.indices)

    def test_copies_beside_others_are_no_neighbours(self) -> None:
        problem = make_problem()
        known = problem.eval_features[:9]
        twice = select_batch(problem.posterior, problem.pool, B, "maxherding", labelled=known.repeat(2, 1))
        once = select_batch(problem.posterior, problem.pool, B, "maxherding", labelled=known)
        assert torch.equal(twice.indices, once.indices)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_pool_of_copies_is_picked_in_order(self, name: str, dtype: torch.dtype) -> None:
        problem = make_problem(dtype=dtype)
        result = select_batch(problem.posterior, problem.pool[:1].repeat(8, 1), 8, name)
        assert result.indices.tolist() == list(range(8))
        assert (result.utilities[1:].abs() < 1e-5).all()

    def test_copies_come_last_in_their_order(self, dtype: torch.dtype) -> None:
        problem = make_problem(n_pool=5, dtype=dtype)
        result = select_batch(problem.posterior, problem.pool.repeat(3, 1), 15, "maxherding")
        assert sorted(result.indices[:5].tolist()) == [0, 1, 2, 3, 4]
        if dtype == torch.float64:  # in float32 the kernel of a row with itself may be one rounding below one
            assert result.indices[5:].tolist() == list(range(5, 15))

    @pytest.mark.parametrize("name", NAMES)
    def test_rows_at_the_centre_have_a_direction_of_their_own(self, name: str) -> None:
        problem = make_problem()
        pool = problem.pool.clone()
        pool[[4, 9]] = problem.posterior.centre
        result = select_batch(problem.posterior, pool, 60, name, labelled=problem.eval_features)

        def uncertainty(posterior: LastLayerLaplace) -> Tensor:
            return margins(posterior, pool) if name == "uherding" else torch.ones(60, dtype=pool.dtype)

        picks, values = by_definition(problem, pool, problem.eval_features, uncertainty=uncertainty, count=30)
        assert_same(result._replace(indices=result.indices[:30], utilities=result.utilities[:30]), (picks, values))
        assert 4 in result.indices[:30]

    @pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10])
    def test_directions_do_not_depend_on_the_scale(self, scale: float) -> None:
        problem = make_problem(dtype=torch.float32)
        weight = torch.zeros(4, 12)
        plain, scaled = (
            select_batch(
                LastLayerLaplace(weight).fit(problem.pool[:0]),
                problem.pool * factor,
                B,
                "maxherding",
                labelled=problem.eval_features * factor,
            )
            for factor in (1.0, scale)
        )
        assert torch.equal(plain.indices, scaled.indices)

    def test_without_labels_uherding_is_maxherding(self) -> None:
        problem = make_problem()
        untrained = LastLayerLaplace(torch.zeros(4, 12, dtype=torch.float64)).fit(problem.pool[:0])
        picks = [select_batch(untrained, problem.pool, B, name).indices for name in NAMES]
        assert torch.equal(*picks)

    def test_labels_of_one_class_are_enough(self) -> None:
        problem = make_problem()
        model = LastLayerLaplace.fit_map(problem.pool[:5], torch.zeros(5, dtype=torch.int64), 4)
        result = select_batch(model, problem.pool, B, labelled=problem.pool[:5])
        assert len(result.indices.unique()) == B

    def test_rows_that_are_excluded_are_covered_by_others_and_not_picked(self) -> None:
        problem = make_problem()
        exclude = torch.arange(0, 60, 3)
        result = select_batch(problem.posterior, problem.pool, B, "maxherding", exclude=exclude)
        assert not set(result.indices.tolist()) & set(exclude.tolist())
        without = select_batch(
            problem.posterior, problem.pool, B, "maxherding", candidates=torch.tensor([i for i in range(60) if i % 3])
        )
        assert not torch.equal(result.utilities, without.utilities)


def test_tiles_and_the_short_list_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(n_pool=120)

    def results() -> list[Tensor]:
        return [
            select_batch(
                problem.posterior, problem.pool, 30, name, labelled=problem.eval_features, memory=memory
            ).utilities
            for name in NAMES
            for memory in (None, 9000.0, 1.0)
        ]

    expected = results()
    monkeypatch.setattr("lapal_ext.tiles.TILE_ROWS", 13)
    monkeypatch.setattr("lapal_ext.acquisition.kernel_rows.TILE_ROWS", 13)
    monkeypatch.setattr("lapal_ext.acquisition.kernel_rows._TILE", 900)
    monkeypatch.setattr("lapal_ext.acquisition.lazy_gains._SHORT_LIST", 5)
    monkeypatch.setattr("lapal_ext.acquisition.lazy_gains._AT_ONCE", 3)
    for actual, before in zip(results(), expected, strict=True):
        torch.testing.assert_close(actual, before, rtol=1e-12, atol=0)


@pytest.mark.parametrize("memory", [None, 9000.0])
def test_few_gains_are_computed_anew(memory: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(n_pool=2000)
    computed = []
    gains = KernelRows.gains

    def count(self: KernelRows, rows: Tensor, weight: Tensor, covered: Tensor) -> Tensor:
        computed.append(len(rows))
        return gains(self, rows, weight, covered)

    monkeypatch.setattr(KernelRows, "gains", count)
    select_batch(problem.posterior, problem.pool, 50, "uherding", labelled=problem.eval_features, memory=memory)
    assert sum(computed) < 50 * 2000 / 10


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_rows_that_only_cover_each_other_tie_at_a_small_bandwidth(dtype: torch.dtype, seed: int) -> None:
    """The kernel of a row with itself is exp(-2 rounding / h^2), and not one."""
    draw = Draw(seed)
    labelled = draw.normal(1, 9) + 0.03 * draw.normal(4, 9)
    posterior = LastLayerLaplace.fit_map(draw.normal(30, 9).to(dtype), draw.integers(3, 30), 3)
    pool = draw.normal(2, 9).to(dtype)
    result = select_batch(posterior, pool, 2, "maxherding", labelled=labelled.to(dtype))
    assert result.indices.tolist() == [0, 1]
