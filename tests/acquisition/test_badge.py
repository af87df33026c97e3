"""BADGE: k-means++ on gradient embeddings, formed in full here and never in the package."""

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, SequentialSelector, select_batch
from lapal_ext.acquisition.badge import BadgeScorer, thresholds
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.acquisition.spec import Setting
from lapal_ext.pool.pool import Pool
from lapal_ext.rules import LINKS
from tests.acquisition.dense import draw, embeddings, first_largest
from tests.problems import make_problem

B = 9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_definition(
    posterior: LastLayerLaplace, pool: Tensor, labels: Tensor, link: str, update_every: int, seed: int
) -> tuple[list[int], list[float]]:
    uniform = thresholds(choose_seed("badge", LINKS[link], len(pool), generator(seed)), B, torch.float64).tolist()
    picks: list[int] = []
    values: list[float] = []
    while len(picks) < B:
        points = embeddings(posterior, pool, link)
        start = len(picks)
        while len(picks) < min(start + update_every, B):
            if not picks:
                squares = points.square().sum(1)
                picks.append(first_largest(squares, []))
            else:
                squares = torch.stack([(points - points[pick]).square().sum(1) for pick in picks]).amin(0)
                squares[squares < 1e-12 * squares.max()] = 0.0
                picks.append(draw(squares, uniform[len(picks)]))
            values.append(float(squares[picks[-1]]))
        group = picks[start:]
        posterior = posterior.condition_on(pool[group], labels[group])
    return picks, values


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 4, B])
def test_picks_are_those_of_the_definition(n_classes: int, link: str, update_every: int) -> None:
    problem = make_problem(n_classes=n_classes)
    pool = torch.cat([problem.pool, problem.pool[:30]])
    labels = problem.labels.repeat(2)[:90]
    for seed in range(5):
        result = select_batch(
            problem.posterior,
            pool,
            B,
            "badge",
            labels,
            link=link,
            update_every=update_every,
            generator=generator(seed),
        )
        picks, values = by_definition(problem.posterior, pool, labels, link, update_every, seed)
        assert result.indices.tolist() == picks
        torch.testing.assert_close(result.utilities, torch.tensor(values, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize("offset", [0.0, 3e5])
@pytest.mark.parametrize("update_every", [1, 5, 15])
def test_a_copy_of_a_picked_row_is_never_picked(offset: float, update_every: int, dtype: torch.dtype) -> None:
    """Also where features are far from the centre, so that the computed distance of a copy is a rounding error."""
    problem = make_problem(n_pool=15)
    shifted = problem.posterior.clone()
    shifted.centre += offset
    pool = (problem.pool + offset).repeat(8, 1).to(dtype)
    for seed in range(10):
        picks = select_batch(
            shifted.to(dtype), pool, 15, "badge", update_every=update_every, generator=generator(seed)
        ).indices
        assert sorted((picks % 15).tolist()) == list(range(15))


def test_copies_follow_where_nothing_else_is_left(dtype: torch.dtype) -> None:
    problem = make_problem(n_pool=3, dtype=dtype)
    result = select_batch(problem.posterior, problem.pool.repeat(3, 1), 9, "badge", generator=generator())
    assert sorted((result.indices[:3] % 3).tolist()) == [0, 1, 2]
    assert result.indices[3:].tolist() == sorted(set(range(9)) - set(result.indices[:3].tolist()))
    assert bool((result.utilities[:3] > 0).all())
    assert not result.utilities[3:].any()


def test_rows_outside_the_candidates_are_never_picked() -> None:
    problem = make_problem()
    allowed = torch.arange(0, 60, 4)
    picks = select_batch(
        problem.posterior, problem.pool, 15, "badge", candidates=allowed, generator=generator()
    ).indices
    assert sorted(picks.tolist()) == allowed.tolist()


def test_gradients_that_overflow_raise() -> None:
    problem = make_problem()
    pool = problem.pool.clone()
    pool[3, 3] = 1e300
    with pytest.raises(ValueError, match=r"^pool must give results that are finite"):
        SequentialSelector(problem.posterior, pool, "badge")


def test_nothing_is_drawn_from_a_gradient_that_is_not_a_number() -> None:
    problem = make_problem()
    pool = Pool(problem.posterior, problem.pool)
    scorer = BadgeScorer(Setting(problem.posterior, pool, LINKS["plugin"]))
    scorer._logits[3, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^pool must give results that are finite"):
        scorer.pick(2)


def test_picks_do_not_depend_on_how_many_centres_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(n_pool=120)

    def picks() -> Tensor:
        return select_batch(problem.posterior, problem.pool, 40, "badge", generator=generator()).indices

    expected = picks()
    monkeypatch.setattr("lapal_ext.acquisition.badge._CENTRES", 7)
    assert torch.equal(picks(), expected)
