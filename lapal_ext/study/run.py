"""The demo: two experiments on load_digits over all seeds, on one thread, with progress."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import torch
from threadpoolctl import threadpool_limits

from lapal_ext.study.data import Split, load_digits, split
from lapal_ext.study.metrics import measure
from lapal_ext.study.protocols import (
    ACTIVE_LEARNING,
    UPDATING,
    active_learning,
    updating,
)
from lapal_ext.study.records import Record

DEMO_UPDATING = ("base", "official_10", "line_search", "refit")
DEMO_ACTIVE = ("random", "margin", "margin_predicted", "margin_true", "look_ahead_true")
_PRIOR_PRECISION = 10.0

Progress = Callable[[str, int, int], None]
"""Told (experiment, records measured so far, records in all) after each record."""


@dataclass(frozen=True)
class Settings:
    """Size of a study; all but the seeds default to the demo's."""

    seeds: int
    updating_labels: int = 50  # before the update
    new_labels: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    active_labels: int = 10  # before the first batch
    batch_size: int = 10
    acquisitions: int = 12


def run_study(settings: Settings, progress: Progress) -> list[Record]:
    """Measure every strategy of both experiments on load_digits, seeds 0 to ``settings.seeds`` - 1.

    Everything but the times repeats exactly. torch keeps to one thread meanwhile: matrices this small get slower when
    threads share them.
    """
    data = load_digits()
    splits = [split(data, seed) for seed in range(settings.seeds)]
    totals = {
        UPDATING: 1 + (len(DEMO_UPDATING) - 1) * len(settings.new_labels),
        ACTIVE_LEARNING: len(DEMO_ACTIVE) * (1 + settings.acquisitions),
    }
    experiments = {
        UPDATING: chain.from_iterable(_updating(part, seed, settings) for seed, part in enumerate(splits)),
        ACTIVE_LEARNING: chain.from_iterable(
            _active_learning(part, seed, settings) for seed, part in enumerate(splits)
        ),
    }
    records: list[Record] = []
    with one_thread():
        _warm_up(splits[0], settings)
        for name, measured in experiments.items():
            for done, record in enumerate(measured, start=1):
                records.append(record)
                progress(name, done, settings.seeds * totals[name])
    return records


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch, and what scikit-learn calls, to one thread, and give them back what they had."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _updating(part: Split, seed: int, settings: Settings) -> Iterator[Record]:
    outcomes = updating(
        part, seed, settings.updating_labels, settings.new_labels, DEMO_UPDATING, prior_precision=_PRIOR_PRECISION
    )
    return measure(outcomes, part.test.targets, UPDATING, seed, _PRIOR_PRECISION)


def _active_learning(part: Split, seed: int, settings: Settings) -> Iterator[Record]:
    outcomes = chain.from_iterable(
        active_learning(
            part,
            seed,
            settings.active_labels,
            settings.batch_size,
            settings.acquisitions,
            name,
            prior_precision=_PRIOR_PRECISION,
        )
        for name in DEMO_ACTIVE
    )
    return measure(outcomes, part.test.targets, ACTIVE_LEARNING, seed, _PRIOR_PRECISION)


def _warm_up(part: Split, settings: Settings) -> None:
    """Call everything once, unmeasured: the first call of an op loads what torch loads lazily, seconds of it."""
    for _ in _updating(part, 0, settings):
        pass
    for _ in _active_learning(part, 0, replace(settings, acquisitions=1)):
        pass
