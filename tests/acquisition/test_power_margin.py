"""Power acquisition: the definition in float64 with the same draws, and the distribution of the first pick."""

import math

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.acquisition.power_margin import gumbel_draws
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.rules import LINKS
from tests.problems import make_problem

B = 10


def generator(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(posterior: LastLayerLaplace, pool: Tensor, link: str) -> Tensor:  # [N]
    first, second = posterior.predict_proba(pool, link).topk(2, dim=1).values.unbind(1)
    seed = choose_seed("power_margin", LINKS[link], len(pool), generator())
    return (1 - (first - second)).log() + gumbel_draws(seed, len(pool))


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("update_every", [1, 4, B])
def test_picks_are_those_of_the_definition(link: str, update_every: int) -> None:
    problem = make_problem(n_classes=10)
    result = select_batch(
        problem.posterior,
        problem.pool,
        B,
        "power_margin",
        problem.labels,
        update_every=update_every,
        link=link,
        generator=generator(),
    )
    model, picks, values = problem.posterior.clone(), [], []
    while len(picks) < B:
        utilities = perturbed(model, problem.pool, link)
        utilities[picks] = -math.inf
        group = utilities.sort(descending=True).indices[: min(update_every, B - len(picks))]
        picks += group.tolist()
        values += utilities[group].tolist()
        model.update(problem.pool[group], problem.labels[group])
    assert result.indices.tolist() == picks
    torch.testing.assert_close(result.utilities, torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_the_first_pick_is_drawn_in_proportion_to_the_utilities() -> None:
    problem = make_problem(n_pool=8)
    first, second = problem.posterior.predict_proba(problem.pool, "plugin").topk(2, dim=1).values.unbind(1)
    expected = (1 - (first - second)) / (1 - (first - second)).sum()
    assert float(expected.amax()) > 2 * float(expected.amin())
    draws, many = generator(), 1000
    picks = [select_batch(problem.posterior, problem.pool, 1, "power_margin", generator=draws) for _ in range(many)]
    counts = torch.cat([pick.indices for pick in picks]).bincount(minlength=8)
    noise = (many * expected * (1 - expected)).sqrt()
    assert bool(((counts - many * expected).abs() < 5 * noise).all())


def test_rows_without_utility_come_last_with_finite_utilities() -> None:
    """Their margin is zero even in float64, since the second probability underflows."""
    posterior = LastLayerLaplace(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)).fit(
        torch.eye(2, dtype=torch.float64)
    )
    pool = torch.tensor([[4000.0, 1.0], [0.1, 2.0], [-4000.0, 3.0], [0.2, 1.0]], dtype=torch.float64)
    orders = set()
    for seed in range(20):
        result = select_batch(posterior, pool, 4, "power_margin", generator=generator(seed))
        assert set(result.indices[:2].tolist()) == {1, 3}
        assert bool(result.utilities.isfinite().all())
        orders.add(tuple(result.indices[2:].tolist()))
    assert orders == {(0, 2), (2, 0)}


def test_the_draws_of_a_large_pool_do_not_tie() -> None:
    draws = gumbel_draws(0, 1_000_000)
    assert len(draws.unique()) == len(draws)
    assert abs(float(draws.mean()) - 0.5772) < 0.01  # the mean of Gumbel(0, 1) is Euler's constant
