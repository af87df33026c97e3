"""The rows of the comparison: what is timed, by whom, and the check that all do the same work."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.peers import checks
from benchmarks.peers.comparison import Peer, Row
from benchmarks.peers.settings import noise, seeded
from benchmarks.peers.task import N_CANDIDATES, N_POINTS, Task, make_task
from benchmarks.workloads.fits import FitProblem, fit_problem, fit_sets
from lapal_ext import expected_error_reduction, ops, select_batch

_MOST_FITTED = 5000  # rows; larger fits are in W9 of ``benchmarks.table``


def rows() -> Iterator[Row]:
    """All comparisons, in the order of the table."""
    active, bmdal, laplace = "scikit_activeml", "bmdal_reg", "laplace_torch"
    size = "100 of 10,000"
    yield Row("CoreSet", size, make_task, _select("coreset"), checks.covering_radius, [
        Peer("scikit-activeml", active, "core_set"), Peer("bmdal_reg `maxdist`", bmdal, "max_dist"),
    ])  # fmt: skip
    yield Row("ProbCover", size, make_task, _select("probcover"), checks.covered_rows, [
        Peer("scikit-activeml", active, "prob_cover"),
    ])  # fmt: skip
    yield Row("TypiClust", size, make_task, _select("typiclust"), checks.typicality, [
        Peer("scikit-activeml", active, "typi_clust"),
    ])  # fmt: skip
    yield Row("MaxHerding", "50 of 5,000", _half, _select("maxherding"), checks.kernel_coverage, [
        Peer("scikit-activeml", active, "max_herding"),
    ])  # fmt: skip
    yield Row("BADGE", size, make_task, _select("badge"), checks.large_gradients, [
        Peer("scikit-activeml", active, "badge"), Peer("bmdal_reg `kmeanspp`", bmdal, "kmeanspp"),
    ])  # fmt: skip
    yield Row("BAIT, binary Fisher", size, make_task, _select("bait"), checks.fisher_trace, [
        Peer("bmdal_reg `bait`", bmdal, "bait"),
    ])  # fmt: skip
    yield Row("margin, top-b", size, make_task, _select("margin"), checks.same_rows, [
        Peer("scikit-activeml", active, "margin"),
    ])  # fmt: skip
    yield Row("BALD, 128 samples, top-b", size, make_task, _bald, checks.same_rows, [
        Peer("batchbald_redux", "batchbald_redux", "bald"),
    ])  # fmt: skip
    yield Row("expected error reduction, 1,000 points", "20", make_task, _expected_error, checks.expected_losses, [
        Peer("scikit-activeml, refits", active, "expected_error"),
    ])  # fmt: skip
    yield Row("mean-field predictive", "10,000", make_task, _predict, checks.probabilities, [
        Peer("laplace-torch `diag`", laplace, "diag"),
        Peer("laplace-torch `kron`", laplace, "kron", part=0.1),
        Peer("laplace-torch `full`", laplace, "full", part=0.02),
    ])  # fmt: skip
    for chosen in fit_sets():
        if chosen.rows <= _MOST_FITTED:
            make = functools.partial(fit_problem, chosen)
            yield Row(f"`fit_map`, {chosen.name}", f"{chosen.rows:,}", make, _fit, checks.fit, [
                Peer("scikit-learn", "scikit_learn", "logistic_regression"),
            ])  # fmt: skip


def _half() -> Task:
    return make_task(5000, 50)


def _select(name: str) -> Callable[[Task], Callable[[], Tensor]]:
    """The whole batch under the current model."""

    def prepare(task: Task) -> Callable[[], Tensor]:
        return lambda: (
            select_batch(
                task.posterior,
                task.pool,
                task.batch_size,
                name,
                targets=None,
                labelled=task.labelled,
                generator=seeded(),
            ).indices
        )

    return prepare


def _bald(task: Task) -> Callable[[], Tensor]:
    logits, variance = task.posterior.predict_latent(task.pool)
    draws = noise()

    def call() -> Tensor:
        mean, entropy = ops.mc_predictive(logits, variance, draws)
        return (torch.special.entr(mean).sum(1) - entropy).topk(task.batch_size).indices

    return call


def _expected_error(task: Task) -> Callable[[], Tensor]:
    candidates, points = task.pool[:N_CANDIDATES], task.pool[N_CANDIDATES : N_CANDIDATES + N_POINTS]
    return lambda: expected_error_reduction(
        task.posterior, candidates, points, "expected_cross_entropy", step="line_search"
    )


def _predict(task: Task) -> Callable[[], Tensor]:
    return lambda: task.posterior.predict_proba(task.pool, link="mean_field")


def _fit(problem: FitProblem) -> Callable[[], Tensor]:
    return lambda: problem.fit().mean
