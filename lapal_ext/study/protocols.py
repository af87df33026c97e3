"""The experiments, as functions of a split and a seed that yield one outcome per model.

All strategies of a seed are paired: they have the same split, the same initial labels and, for each query, the same
draw of candidates. A "refit" is ``LastLayerLaplace.refit`` to all labels, begun where an update with the new ones ends;
its time includes that update. An "update" of a curve is ``LastLayerLaplace.update`` with the labels of the last batch.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lapal_ext import baselines
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.study import strategies
from lapal_ext.study.data import Split
from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.metrics import Outcome
from lapal_ext.study.strategies import FIRST_ORDER, MONTE_CARLO, UPDATE_RULES

UPDATING = "updating"
ACTIVE_LEARNING = "active_learning"

_TIMINGS = 3  # runs of every update and refit
_PRIOR_PRECISION = 10.0

_T = TypeVar("_T")


def updating(
    split: Split,
    seed: int,
    initial_labels: int,
    new_labels: Sequence[int],
    names: Sequence[str],
    prior_precision: float = _PRIOR_PRECISION,
) -> Iterator[Outcome]:
    """Absorb new labels into a fitted model, by each rule and by a refit.

    The base is fitted to the first ``initial_labels`` rows of a random order of the pool. The new labels are those of
    the next rows. All rules start from the same mean, and each has a covariance of its own curvature. The time of an
    update is without the copy of the base; that of a refit includes the update that it begins with. Neither includes
    the prediction, but Monte Carlo has no weights, so its time does.
    """
    order = torch.randperm(
        len(split.pool.targets), generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu"
    )
    initial = order[:initial_labels]
    categorical = _fit(split, initial, prior_precision)
    gaussian = categorical.clone()
    gaussian.curvature = "gaussian"
    bases = {"categorical": categorical, "gaussian": gaussian.fit(split.pool.features[initial])}
    points = split.test.features
    if "base" in names:
        yield Outcome("base", initial_labels, _log_probabilities(categorical, points), None, None)
    for count in new_labels:
        labels = initial_labels + count
        new = _rows(split.pool, order[initial_labels:labels])
        for name in (name for name in names if name != "base"):
            if name in MONTE_CARLO:
                sample = partial(_monte_carlo, categorical, new, points, MONTE_CARLO[name], seed)
                probabilities, seconds = _timed([sample])
                smallest = torch.finfo(probabilities.dtype).tiny
                yield Outcome(name, labels, probabilities.double().clamp(min=smallest).log(), None, seconds)
                continue
            if name == "refit":
                attempts = [partial(_refit, categorical, new, _rows(split.pool, order[:labels]))] * _TIMINGS
            elif name in FIRST_ORDER:
                attempts = [partial(baselines.first_order, categorical, *new, FIRST_ORDER[name])] * _TIMINGS
            else:
                rule = UPDATE_RULES[name]
                copies = [bases[rule.curvature].clone() for _ in range(_TIMINGS)]
                attempts = [partial(copy.update, *new, rule.step, rule.gamma) for copy in copies]
            model, seconds = _timed(attempts)
            yield Outcome(name, labels, _log_probabilities(model, points), None, seconds)


def _timed(attempts: Sequence[Callable[[], _T]]) -> tuple[_T, float]:
    """Run equal attempts; return the last result and the median time, which depends least on a busy machine."""
    seconds = []
    for attempt in attempts:
        start = time.perf_counter()
        result = attempt()
        seconds.append(time.perf_counter() - start)
    return result, median(seconds)


def active_learning(
    split: Split,
    seed: int,
    initial_labels: int,
    batch_size: int,
    acquisitions: int,
    name: str,
    subset: int | None = None,
    prior_precision: float = _PRIOR_PRECISION,
    refit_every: int = 1,
) -> Iterator[Outcome]:
    """Label batch after batch, chosen by one strategy, with a refit or an update after every batch.

    All strategies start from the same random rows. The time of the choice of a batch and the time of the refit or the
    update are apart, and both are without the prediction.

    Args:
        split: the data.
        seed: of the initial rows, of the candidates and of the strategy.
        initial_labels: number of labels before the first batch.
        batch_size: b.
        acquisitions: number of batches.
        name: one of ``strategies.BATCH_STRATEGIES``; with the suffix ``strategies.UPDATED`` there is no refit.
        subset: number of candidates, see ``candidates``.
        prior_precision: of every fit.
        refit_every: K; after every K-th batch the model is refitted, and after each other batch it is updated. With 0
            there are only updates.
    """
    strategy = strategies.chooser(name)
    if not strategies.is_refitted(name):
        refit_every = 0
    rows_in_pool = len(split.pool.targets)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    labelled = torch.randperm(rows_in_pool, generator=generator, device="cpu")[:initial_labels]
    model = _fit(split, labelled, prior_precision)
    yield Outcome(name, len(labelled), _log_probabilities(model, split.test.features), None, None)
    for query in range(acquisitions):
        free = candidates(rows_in_pool, labelled, subset, seed, query)
        unlabelled = _rows(split.pool, free)
        start = time.perf_counter()
        chosen = strategies.choose_batch(
            strategy, model, split.pool.features[labelled], unlabelled, split.evaluation, batch_size, generator
        )
        choice = time.perf_counter() - start
        batch = free[chosen]
        labelled = torch.cat([labelled, batch])
        start = time.perf_counter()
        if refit_every > 0 and (query + 1) % refit_every == 0:
            model = _refit(model, _rows(split.pool, batch), _rows(split.pool, labelled))
        else:
            model.update(*_rows(split.pool, batch))
        learning = time.perf_counter() - start
        yield Outcome(name, len(labelled), _log_probabilities(model, split.test.features), choice, learning)


def candidates(
    rows_in_pool: int,
    labelled: Tensor,  # [L] int64
    subset: int | None,
    seed: int,
    query: int,
) -> Tensor:  # [K] int64, ascending
    """Rows that a query may choose from.

    They are the first ``subset`` unlabelled rows of a random order of the pool, or all unlabelled rows if ``subset`` is
    None. The order depends on the seed and the query alone, so it is the same for all strategies.
    """
    free = torch.ones(rows_in_pool, dtype=torch.bool, device="cpu")
    free[labelled] = False
    if subset is None:
        return free.nonzero()[:, 0]
    of_query = np.random.SeedSequence((seed, query)).generate_state(1)
    order = torch.randperm(
        rows_in_pool, generator=torch.Generator(device="cpu").manual_seed(int(of_query[0])), device="cpu"
    )
    return order[free[order]][:subset].sort().values


def _fit(
    split: Split,
    rows: Tensor,  # [n] int64
    prior_precision: float,
) -> LastLayerLaplace:
    return LastLayerLaplace.fit_map(*_rows(split.pool, rows), split.num_classes, prior_precision)


def _refit(model: LastLayerLaplace, new: Labelled, every: Labelled) -> LastLayerLaplace:
    return model.condition_on(*new).refit(*every)


def _rows(data: Labelled, rows: Tensor) -> Labelled:
    return Labelled(data.features[rows], data.targets[rows])


def _monte_carlo(model: LastLayerLaplace, new: Labelled, points: Tensor, gamma: float, seed: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return baselines.monte_carlo(model, *new, points, gamma, generator=generator)


def _log_probabilities(
    model: LastLayerLaplace,
    points: Tensor,  # [T, D]
) -> Tensor:  # [T, C] float64
    # The plugin predictive depends on the mean alone: rules are compared by their means, not by their covariances.
    return model.predict_logits(points).double().log_softmax(1)
