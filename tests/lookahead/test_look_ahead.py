"""Look-ahead, error reduction and batch search: the same numbers as updating and then evaluating."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, expected_error_reduction, look_ahead, select_batch, select_lookahead
from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.registry import ACQUISITIONS, draws
from lapal_ext.likelihood import CURVATURES, STEPS
from lapal_ext.lookahead.proposals import PROPOSALS
from lapal_ext.losses import EXPECTED_LOSSES, LOSSES
from lapal_ext.pool.pool import Pool
from lapal_ext.rules import EXACT_LINKS, LINKS
from tests.draws import Draw
from tests.problems import Problem, make_problem


def loss_by_definition(posterior: LastLayerLaplace, x: Tensor, y: Tensor, loss: str, link: str) -> Tensor:
    p = posterior.predict_proba(x, link=link)
    p_target = p.gather(1, y[:, None])[:, 0]
    return {
        "cross_entropy": -p_target.log(),
        "zero_one": (p.argmax(1) != y).to(p.dtype),
        "brier": (p - torch.nn.functional.one_hot(y, p.shape[1])).square().sum(1),
        "expected_cross_entropy": -(p * p.log()).sum(1),
        "expected_zero_one": 1 - p.amax(1),
    }[loss].mean()


@pytest.fixture
def batches(draw: Draw) -> Tensor:
    return torch.stack([torch.randperm(60, generator=draw.generator)[:5] for _ in range(9)])


@pytest.mark.parametrize("link", EXACT_LINKS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("loss", LOSSES)
def test_look_ahead_is_update_then_evaluate(
    batches: Tensor, loss: str, curvature: str, step: str, link: str, dtype: torch.dtype
) -> None:
    exact = make_problem(curvature=curvature)
    expected = torch.stack(
        [
            loss_by_definition(
                exact.posterior.condition_on(exact.pool[batch], exact.labels[batch], step),
                exact.eval_features,
                exact.eval_targets,
                loss,
                link,
            )
            for batch in batches
        ]
    )
    posterior, pool, points = exact.posterior.clone().to(dtype), exact.pool.to(dtype), exact.eval_features.to(dtype)
    truth = None if loss in EXPECTED_LOSSES else exact.eval_targets
    losses = look_ahead(posterior, pool, batches, exact.labels, points, truth, loss, step, link=link)
    assert losses.dtype == dtype
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=0)
    by_entry = look_ahead(posterior, pool, batches, exact.labels[batches], points, truth, loss, step, link=link)
    assert torch.equal(by_entry, losses)


def test_tiles_do_not_matter(batches: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()

    def run() -> list[Tensor]:
        arguments = (problem.posterior, problem.pool)
        return [
            look_ahead(*arguments, batches, problem.labels, problem.eval_features, link="mean_field"),
            expected_error_reduction(*arguments, problem.eval_features),
            expected_error_reduction(*arguments, problem.eval_features, step="line_search"),
        ]

    whole = run()
    monkeypatch.setattr("lapal_ext.lookahead.evaluation.TILE", 100)
    for tiled, expected in zip(run(), whole, strict=True):
        torch.testing.assert_close(tiled, expected, rtol=1e-13, atol=0)


def test_no_batches_and_half_precision_pools(batches: Tensor) -> None:
    problem = make_problem(dtype=torch.float32)
    stored = problem.pool.to(torch.bfloat16)
    arguments = (problem.labels, problem.eval_features)
    assert look_ahead(problem.posterior, stored, batches[:0], *arguments).shape == (0,)
    kept = look_ahead(problem.posterior, stored, batches, *arguments)
    torch.testing.assert_close(kept, look_ahead(problem.posterior, stored.float(), batches, *arguments))


@pytest.mark.parametrize("link", EXACT_LINKS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("loss", EXPECTED_LOSSES)
def test_expected_error_reduction_is_the_mean_over_labels(loss: str, curvature: str, step: str, link: str) -> None:
    problem = make_problem(n_pool=20, curvature=curvature)
    scores = expected_error_reduction(problem.posterior, problem.pool, problem.eval_features, loss, step, link=link)
    p = problem.posterior.predict_proba(problem.pool, link=link)
    for row in range(20):
        expected = sum(
            p[row, label]
            * loss_by_definition(
                problem.posterior.condition_on(problem.pool[row : row + 1], torch.tensor([label]), step),
                problem.eval_features,
                problem.eval_targets,
                loss,
                link,
            )
            for label in range(4)
        )
        torch.testing.assert_close(scores[row], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PROPOSALS)
def test_proposals_are_batches_of_distinct_rows(name: str) -> None:
    problem = make_problem()
    generator = torch.Generator().manual_seed(0)
    batches = PROPOSALS[name](Pool(problem.posterior, problem.pool), 7, 20, generator)
    assert batches.shape == (20, 7)
    assert all(len(set(batch)) == 7 for batch in batches.tolist())
    assert bool(((batches >= 0) & (batches < 60)).all())
    assert len({tuple(sorted(batch)) for batch in batches.tolist()}) > 1
    again = PROPOSALS[name](Pool(problem.posterior, problem.pool), 7, 20, torch.Generator().manual_seed(0))
    assert torch.equal(batches, again)


def test_diverse_batches_take_one_row_of_each_cluster(draw: Draw) -> None:
    problem = make_problem()
    corners = 50.0 * torch.eye(12, dtype=torch.float64)[torch.arange(60) % 6] + draw.normal(60, 12)
    batches = PROPOSALS["diverse"](Pool(problem.posterior, corners), 6, 10, torch.Generator().manual_seed(0))
    assert bool(((batches % 6).sort(1).values == torch.arange(6)).all())


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_diverse_batches_of_duplicates_have_distinct_rows() -> None:
    problem = make_problem()
    pool = problem.pool[:3].repeat(20, 1)
    batches = PROPOSALS["diverse"](Pool(problem.posterior, pool), 7, 4, torch.Generator())
    assert all(len(set(batch)) == 7 for batch in batches.tolist())


def test_informative_batches_are_uncertain() -> None:
    problem = make_problem(n_pool=400)
    rows = Pool(problem.posterior, problem.pool)
    p = problem.posterior.predict_proba(problem.pool, link="plugin").topk(2, dim=1).values
    margin = 1 - (p[:, 0] - p[:, 1])
    batches = PROPOSALS["informative"](rows, 5, 20, torch.Generator().manual_seed(0))
    assert float(margin[batches].min()) >= float(margin.sort(descending=True).values[39])


def search(problem: Problem, **arguments: object):
    return select_lookahead(
        problem.posterior,
        problem.pool,
        problem.eval_features,
        batch_size=5,
        n_batches=31,
        generator=torch.Generator().manual_seed(0),
        **arguments,
    )


@pytest.mark.parametrize("targets", ["predicted", "sampled", "true"])
def test_the_best_batch_is_the_best_of_those_proposed(targets: str) -> None:
    problem = make_problem()
    true = targets == "true"
    arguments = {"targets": problem.labels, "eval_targets": problem.eval_targets} if true else {"targets": targets}
    result = search(problem, **arguments)
    assert result.indices.shape == result.utilities.shape == (5,)
    loss = "cross_entropy" if true else "expected_zero_one"
    achieved = loss_by_definition(result.posterior, problem.eval_features, problem.eval_targets, loss, "plugin")
    torch.testing.assert_close(-result.utilities, achieved.expand(5))
    if true:
        random = search(problem, proposals=("random",), **arguments)
        middling = search(problem, proposals=("random",), loss="brier", **arguments)
        assert not torch.equal(middling.utilities, random.utilities)


@pytest.mark.parametrize("loss", [None, *LOSSES])
@pytest.mark.parametrize("labelled", [False, True])
def test_the_utility_is_the_loss_that_look_ahead_gives_for_the_batch(loss: str | None, labelled: bool) -> None:
    """Both choose the same loss where none is named."""
    problem = make_problem()
    arguments = {"eval_targets": problem.eval_targets if labelled else None, "loss": loss}
    if loss is not None and labelled == (loss in EXPECTED_LOSSES):
        for call in (
            lambda: search(problem, **arguments),
            lambda: look_ahead(
                problem.posterior,
                problem.pool,
                torch.tensor([[0, 1]]),
                problem.labels,
                problem.eval_features,
                **arguments,
            ),
        ):
            with pytest.raises(ValueError, match=f"^eval_targets must be (None|given) for loss='{loss}'"):
                call()
        return
    result = search(problem, targets=problem.labels, proposals=("random",), **arguments)
    batch = result.indices[None]
    ahead = look_ahead(problem.posterior, problem.pool, batch, problem.labels, problem.eval_features, **arguments)
    torch.testing.assert_close(-result.utilities[:1], ahead)
    default = "cross_entropy" if labelled else "expected_zero_one"
    achieved = loss_by_definition(
        result.posterior, problem.eval_features, problem.eval_targets, loss or default, "plugin"
    )
    torch.testing.assert_close(ahead[0], achieved)


def test_label_samples_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best batch has the smallest mean of its losses under the label vectors that were drawn."""
    problem = make_problem()
    losses: list[Tensor] = []

    def record(*arguments: Any) -> Tensor:
        losses.append(look_ahead(*arguments))
        return losses[-1]

    monkeypatch.setattr("lapal_ext.lookahead.select_lookahead.look_ahead", record)
    result = search(problem, targets="sampled", n_label_samples=8, proposals=("random",))
    assert len(losses) == 8
    assert not torch.equal(losses[0], losses[1])
    torch.testing.assert_close(-result.utilities[0], torch.stack(losses).mean(0).amin())


# Proposals by acquisitions


def test_any_acquisition_proposes_the_batch_it_picks_at_once() -> None:
    """An acquisition that does not draw proposes one batch; all of them together find the best of these."""
    problem = make_problem()
    best = {}
    for name in ACQUISITIONS:
        result = search(problem, proposals=(name,))
        best[name] = float(result.utilities[0])
        if name not in ("random", "power_margin", "badge", "typiclust", "probcover"):
            alone = select_batch(problem.posterior, problem.pool, 5, name, None)
            assert torch.equal(result.indices, alone.indices)
    together = search(problem, proposals=tuple(best))
    deterministic = [value for name, value in best.items() if not draws(name, LINKS["plugin"], len(problem.pool))]
    assert float(together.utilities[0]) >= max(deterministic) - 1e-12


def test_proposals_that_draw_differ_and_others_come_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem()
    seen: list[Tensor] = []

    def keep(posterior: LastLayerLaplace, pool: Tensor, batches: Tensor, *rest: object) -> Tensor:
        seen.append(batches)
        return look_ahead(posterior, pool, batches, *rest)

    monkeypatch.setattr("lapal_ext.lookahead.select_lookahead.look_ahead", keep)
    noise = torch.Generator().manual_seed(8)
    calls = []

    def noisy(_: LastLayerLaplace, pool: Tensor) -> Tensor:
        return torch.rand(len(pool), generator=noise)

    def steady(_: LastLayerLaplace, pool: Tensor) -> Tensor:
        calls.append(len(pool))
        return -pool[:, 0]

    search(problem, proposals=("badge", "margin", noisy, steady))  # 31 batches shared: 8, 8, 8, 7
    (batches,) = seen
    assert batches.shape == (8 + 1 + 8 + 1, 5)
    assert len({tuple(batch) for batch in batches.tolist()}) == len(batches)
    assert calls == [60, 60]
    assert torch.equal(batches[-1], problem.pool[:, 0].sort(stable=True).indices[:5])


def test_candidates_and_labelled_rows_reach_the_proposals() -> None:
    problem = make_problem()
    candidates = torch.arange(59, 0, -3)
    kept = problem.pool[candidates.sort().values]
    for targets in ("predicted", "sampled", problem.labels):
        result = search(problem, proposals=("random", "diverse", "coreset"), candidates=candidates, targets=targets)
        assert set(result.indices.tolist()) <= set(candidates.tolist())
    expected = select_batch(problem.posterior, kept, 5, "coreset", None, update_every=5, labelled=problem.eval_features)
    found = search(problem, proposals=("coreset",), candidates=candidates, labelled=problem.eval_features)
    assert torch.equal(found.indices, candidates.sort().values[expected.indices])
    labels = problem.posterior.predict_logits(problem.pool).argmax(1)[found.indices]
    after = problem.posterior.condition_on(problem.pool[found.indices], labels)
    torch.testing.assert_close(found.posterior.mean, after.mean)


def test_a_proposal_of_nan_selects_nothing() -> None:
    with pytest.raises(ValueError, match="gave a utility that is not a number; nothing was selected"):
        search(make_problem(), proposals=(lambda _, pool: pool[:, 0] * float("nan"),))


@pytest.mark.parametrize(
    ("propose", "message"),
    [
        (lambda _, pool: pool, r"'s utilities must have shape \(60,\), one per row, got \(60, 12\)"),
        (lambda _, pool: pool.zero_()[:, 0], " must not change the rows that it gets in place"),
        (lambda _, pool: pool[:, 0] / 0.0 * 0.0, " gave a utility that is not a number"),
    ],
)
def test_an_error_of_a_proposal_says_which(propose: Acquisition, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^proposals\[2\]{message}"):
        search(make_problem(), proposals=("random", lambda _, pool: pool[:, 0], propose))
