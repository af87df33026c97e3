"""BALD: the mutual information of weights and label, by samples and in closed form."""

import pytest
import torch

from lapal_ext import select_batch
from lapal_ext.acquisition.bald import _SAMPLES, information_gain
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.rules import LINKS
from tests.acquisition.dense import first_largest, gaussian_information_gain
from tests.draws import Draw
from tests.problems import Problem, make_problem

B = 8


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def utilities_by_definition(problem: Problem, link: str) -> torch.Tensor:
    logits, variance = problem.posterior.predict_latent(problem.pool)
    if link != "mc":
        p = problem.posterior.predict_proba(problem.pool, link)
        gains = [gaussian_information_gain(*row) for row in zip(p, variance.tolist(), strict=True)]
        return torch.tensor(gains, dtype=torch.float64)
    seed = choose_seed("bald", LINKS[link], len(logits), generator())
    noise = torch.randn(_SAMPLES, logits.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    samples = (logits[:, None] + variance.sqrt()[:, None, None] * noise).softmax(2)  # [N, S, C]
    return torch.special.entr(samples.mean(1)).sum(1) - torch.special.entr(samples).sum(2).mean(1)


@pytest.mark.parametrize("link", ["plugin", "mean_field", "mc"])
@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("update_every", [1, 3, B])
def test_picks_are_those_of_the_definition(n_classes: int, link: str, update_every: int) -> None:
    problem = make_problem(n_classes=n_classes)
    problem = problem._replace(pool=torch.cat([problem.pool, problem.pool[:20]]), labels=problem.labels.repeat(2)[:80])
    result = select_batch(
        problem.posterior,
        problem.pool,
        B,
        "bald",
        problem.labels,
        link=link,
        update_every=update_every,
        generator=generator(),
    )
    model, picks, values = problem, [], []
    while len(picks) < B:
        utilities = utilities_by_definition(model, link)
        group = []
        for _ in range(min(update_every, B - len(picks))):
            group.append(first_largest(utilities, picks + group))
        values += utilities[group].tolist()
        picks += group
        after = model.posterior.condition_on(model.pool[group], model.labels[group])
        model = model._replace(posterior=after)
    assert result.indices.tolist() == picks
    torch.testing.assert_close(result.utilities, torch.tensor(values, dtype=torch.float64), rtol=1e-8, atol=1e-12)


def test_both_forms_agree_where_the_variance_is_small(draw: Draw) -> None:
    """To first order in v both are v (1 - |p|^2) / 2."""
    logits = draw.normal(5, 4)
    variance = torch.full((5,), 1e-3, dtype=torch.float64)
    noise = draw.normal(20_000, 4)
    noise = torch.cat([noise, -noise])
    samples = (logits[:, None] + variance.sqrt()[:, None, None] * noise).softmax(2)
    by_samples = torch.special.entr(samples.mean(1)).sum(1) - torch.special.entr(samples).sum(2).mean(1)
    p = logits.softmax(1)
    torch.testing.assert_close(information_gain(p, variance), by_samples, rtol=0.03, atol=0)
    torch.testing.assert_close(information_gain(p, variance), 0.5e-3 * (1 - p.square().sum(1)), rtol=1e-3, atol=0)


def test_confident_rows_keep_their_order() -> None:
    """In float32, where computing 1 - p_max loses every digit."""
    rest = torch.tensor([1e-9, 3e-9, 2e-9])
    p = torch.stack([1.0 - rest, rest / 2, rest / 2], 1)
    gains = information_gain(p, torch.ones(3))
    torch.testing.assert_close(gains, rest, rtol=1e-5, atol=0)
    assert not information_gain(p, -torch.ones(3)).any()


def test_without_labels_the_variance_changes_but_not_the_mean() -> None:
    problem = make_problem()
    spread = select_batch(problem.posterior, problem.pool, B, "bald", None, update_every=1)
    at_once = select_batch(problem.posterior, problem.pool, B, "bald", None)
    assert not torch.equal(spread.indices, at_once.indices)
    assert torch.equal(spread.posterior.mean, problem.posterior.mean)


def test_only_bald_accepts_the_mc_link() -> None:
    problem = make_problem()
    with pytest.raises(ValueError, match=r"^link must be one of 'plugin', 'mean_field', got 'mc'"):
        select_batch(problem.posterior, problem.pool, B, "margin", link="mc")
