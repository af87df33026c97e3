"""The two experiments, as functions of a split and a seed that yield one record per model. No input or output.

All strategies of a seed are paired: they see the same split, the same initial labels and the same unlabelled rows.
Everywhere, "refit" is ``LastLayerLaplace.fit_map`` on all labels, by L-BFGS to convergence, with its default prior.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.batch_search import select_lookahead
from lapal_ext.posterior import LastLayerLaplace
from lapal_ext.selection import select_batch
from lapal_ext.study.data import Labelled, Split
from lapal_ext.study.records import Record

UPDATING = "updating"
ACTIVE_LEARNING = "active_learning"

_TIMINGS = 3  # of every update and refit


class UpdateRule(NamedTuple):
    """How labels are absorbed; the curvature is also that of the covariance before the update."""

    curvature: str
    step: str
    gamma: float


UPDATE_RULES = {
    "paper": UpdateRule("gaussian", "newton", 10.0),
    "ours": UpdateRule("categorical", "line_search", 1.0),
}
UPDATING_STRATEGIES = ("base", *UPDATE_RULES, "refit")
ACTIVE_STRATEGIES = ("random", "margin", "sequential_predicted", "sequential_true", "look_ahead_true")


def updating(split: Split, seed: int, initial_labels: int, new_labels: Sequence[int]) -> Iterator[Record]:
    """Absorb new labels into a fitted model, by each rule and by a refit.

    The base is fitted to the first ``initial_labels`` rows of a random order of the pool, the new labels are those that
    follow. Rules start from the same mean, each with a covariance of its own curvature. Only the update or the refit is
    timed, without copying the base and without prediction.
    """
    order = torch.randperm(len(split.pool.targets), generator=torch.Generator().manual_seed(seed))
    bases = {name: _fit(split, order[:initial_labels], rule.curvature) for name, rule in UPDATE_RULES.items()}
    yield _measure(UPDATING, seed, "base", bases["ours"], split.test, initial_labels, None)
    for count in new_labels:
        labels = initial_labels + count
        new = _rows(split.pool, order[initial_labels:labels])
        for name, rule in UPDATE_RULES.items():
            copies = [bases[name].clone() for _ in range(_TIMINGS)]
            model, seconds = _timed([partial(copy.update, *new, rule.step, rule.gamma) for copy in copies])
            yield _measure(UPDATING, seed, name, model, split.test, labels, seconds)
        model, seconds = _timed([partial(_fit, split, order[:labels])] * _TIMINGS)
        yield _measure(UPDATING, seed, "refit", model, split.test, labels, seconds)


def _timed(attempts: Sequence[Callable[[], LastLayerLaplace]]) -> tuple[LastLayerLaplace, float]:
    """Run attempts at one thing; return the last model and the median time, which a busy machine moves least."""
    seconds = []
    for attempt in attempts:
        start = time.perf_counter()
        model = attempt()
        seconds.append(time.perf_counter() - start)
    return model, median(seconds)


def active_learning(
    split: Split, seed: int, initial_labels: int, batch_size: int, acquisitions: int
) -> Iterator[Record]:
    """Label batch after batch by each strategy, with a refit after every batch.

    All strategies start from the same random rows, and every batch is chosen among all rows still unlabelled. Only the
    choice of the batch is timed.
    """
    rows_in_pool = len(split.pool.targets)
    generator = torch.Generator().manual_seed(seed)
    initial = torch.randperm(rows_in_pool, generator=generator)[:initial_labels]
    state = generator.get_state()
    for name in ACTIVE_STRATEGIES:
        generator.set_state(state)
        labelled = initial
        model = _fit(split, labelled)
        yield _measure(ACTIVE_LEARNING, seed, name, model, split.test, len(labelled), None)
        for _ in range(acquisitions):
            free = _others(rows_in_pool, labelled)
            unlabelled = _rows(split.pool, free)
            start = time.perf_counter()
            chosen = _choose(name, model, unlabelled, split.evaluation, batch_size, generator)
            seconds = time.perf_counter() - start
            labelled = torch.cat([labelled, free[chosen]])
            model = _fit(split, labelled)
            yield _measure(ACTIVE_LEARNING, seed, name, model, split.test, len(labelled), seconds)


def _choose(
    strategy: str,
    model: LastLayerLaplace,
    unlabelled: Labelled,
    evaluation: Labelled,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:  # [b] int64, of the unlabelled rows
    if strategy == "look_ahead_true":
        return select_lookahead(
            model,
            unlabelled.features,
            evaluation.features,
            batch_size,
            targets=unlabelled.targets,
            eval_targets=evaluation.targets,
            generator=generator,
        ).indices
    if strategy in ("random", "margin"):
        return select_batch(
            model,
            unlabelled.features,
            batch_size,
            strategy,
            None,
            update_every=batch_size,
            generator=generator,
        ).indices
    targets = unlabelled.targets if strategy == "sequential_true" else "predicted"
    return select_batch(model, unlabelled.features, batch_size, "margin", targets).indices


def _fit(
    split: Split,
    rows: Tensor,  # [n] int64
    curvature: str = "categorical",
) -> LastLayerLaplace:
    return LastLayerLaplace.fit_map(*_rows(split.pool, rows), split.num_classes, curvature=curvature)


def _rows(data: Labelled, rows: Tensor) -> Labelled:
    return Labelled(data.features[rows], data.targets[rows])


def _others(
    count: int,
    rows: Tensor,  # [n] int64
) -> Tensor:  # [count - n] int64, ascending
    free = torch.ones(count, dtype=torch.bool)
    free[rows] = False
    return free.nonzero()[:, 0]


def _measure(
    experiment: str,
    seed: int,
    strategy: str,
    model: LastLayerLaplace,
    test: Labelled,
    labels: int,
    seconds: float | None,
) -> Record:
    # The plugin predictive: a difference between two rules is then one of their means, not of their curvatures.
    logits = model.predict_logits(test.features).double()
    accuracy = (logits.argmax(1) == test.targets).double().mean()
    log_likelihood = -torch.nn.functional.cross_entropy(logits, test.targets)
    return Record(experiment, seed, strategy, labels, float(accuracy), float(log_likelihood), seconds)
