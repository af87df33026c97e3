"""Shorter runs of the demo's two experiments, with all strategies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lapal_ext.study import presets, strategies
from lapal_ext.study.configuration import Source
from lapal_ext.study.data import load_digits, split
from lapal_ext.study.experiment import one_thread, run_unit, units
from lapal_ext.study.protocols import ACTIVE_LEARNING, UPDATING
from lapal_ext.study.records import by_seed

DIGITS = Source(None)
UPDATES, ACTIVE = presets.demo(seeds=2)
UPDATES, ACTIVE = replace(UPDATES, new_labels=(1, 10, 50)), replace(ACTIVE, acquisitions=2)


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


def measured(configuration, strategy=None):
    """Records of all units, or of those of one strategy."""
    chosen = [unit for unit in units(configuration) if strategy is None or strategy in unit.strategies]
    return [record for unit in chosen for record in run_unit(configuration, DIGITS, unit)]


@pytest.fixture(scope="module")
def records():
    with one_thread():
        return measured(UPDATES) + measured(ACTIVE)


def untimed(records):
    return [record[:-2] for record in records]


def test_the_demo_fits_its_data_and_needs_no_calibration_error(records):
    for configuration in presets.demo(seeds=6):
        configuration.check_rows(DIGITS.shape()[0])
        assert configuration.seeds == 6
    assert all(record.ece is None for record in records)


def test_the_demo_shows_what_is_recommended():
    assert ACTIVE.strategies == (
        "random",
        "margin",
        "margin_predicted",
        "uherding",
        "uherding_updated",
        "look_ahead_true",
    )
    assert ACTIVE.refit_every == 1


def test_a_seed_repeats_exactly_but_for_the_times(records):
    first = [unit for unit in units(UPDATES) if unit.seed == 1] + [unit for unit in units(ACTIVE) if unit.seed == 1]
    again = [record for unit in first for record in run_unit(UPDATES if len(unit[2]) > 1 else ACTIVE, DIGITS, unit)]
    assert untimed(again) == untimed(record for record in records if record.seed == 1)


def test_every_strategy_is_measured_at_every_count(records):
    for name in UPDATES.strategies:
        counts = [50] if name == "base" else [51, 60, 100]
        assert by_seed(records, UPDATING, name, "accuracy")[0] == counts
    for name in ACTIVE.strategies:
        labels, values = by_seed(records, ACTIVE_LEARNING, name, "accuracy")
        assert labels == [10, 20, 30]
        assert values.shape == (2, 3)


def test_strategies_start_from_the_same_model(records):
    starts = [by_seed(records, ACTIVE_LEARNING, name, "nll")[1][:, 0] for name in ACTIVE.strategies]
    assert all(np.array_equal(start, starts[0]) for start in starts)
    assert starts[0][0] != starts[0][1], "seeds must differ"


def test_strategies_differ_after_a_batch(records):
    ends = {tuple(by_seed(records, ACTIVE_LEARNING, name, "nll")[1][:, 1]) for name in ACTIVE.strategies}
    assert len(ends) == len(ACTIVE.strategies)


def test_choices_never_see_a_test_row_or_a_labelled_one(monkeypatch):
    parts = split(load_digits(), 0)
    seen = []
    choose = strategies.choose_batch

    def spy(strategy, model, labelled, unlabelled, evaluation, *rest):
        chosen = choose(strategy, model, labelled, unlabelled, evaluation, *rest)
        seen.append((unlabelled.features, evaluation.features, unlabelled.features[chosen]))
        return chosen

    monkeypatch.setattr(strategies, "choose_batch", spy)
    measured(replace(ACTIVE, seeds=1), "look_ahead_true")
    for unlabelled, evaluation, _ in seen:
        assert torch.equal(evaluation, parts.evaluation.features)
        assert not (unlabelled[:, None] == parts.test.features[None]).all(2).any()
    assert [len(unlabelled) for unlabelled, *_ in seen] == [890, 880]
    first_batch = seen[0][2]
    assert not (seen[1][0][:, None] == first_batch[None]).all(2).any()


def test_each_number_of_new_labels_starts_from_the_base(records):
    alone = measured(replace(UPDATES, seeds=1, new_labels=(50,)))
    together = [record for record in records if record[:2] == (UPDATING, 0) and record.labels in (50, 100)]
    assert untimed(alone) == untimed(together)


def test_our_rule_closes_most_of_the_gap_to_a_refit(records):
    """On real data with 50 labels: about three quarters of it, in log-likelihood."""
    end = {name: by_seed(records, UPDATING, name, "nll")[1][:, -1] for name in UPDATES.strategies}
    assert (end["base"] - end["line_search"] > 0.5 * (end["base"] - end["refit"])).all()
    assert (end["refit"] < end["base"] - 0.1).all()
