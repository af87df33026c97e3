import csv
import io

import numpy as np
import pytest
import torch
from rich.console import Console

from lapal_ext.atomic_file import replace_file
from lapal_ext.study import run, strategies
from lapal_ext.study.data import load_digits, split
from lapal_ext.study.figures import draw_learning_curves
from lapal_ext.study.protocols import ACTIVE_LEARNING, UPDATING
from lapal_ext.study.records import Record, by_seed, mean_and_error
from lapal_ext.study.report import (
    ACTIVE_NOTES,
    UPDATING_NOTES,
    active_learning_table,
    updating_table,
    write_csv,
)
from lapal_ext.study.run import DEMO_ACTIVE, DEMO_UPDATING, Settings, one_thread, run_study

QUICK = Settings(seeds=2, new_labels=(1, 10, 50), acquisitions=2)


def ignore_progress(experiment, done, total):
    pass


@pytest.fixture(autouse=True)
def single_thread():
    """As ``run_study`` does it: threads that share a busy machine take ten times as long over matrices this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def records():
    return run_study(QUICK, ignore_progress)


def record(experiment, seed, strategy, labels, accuracy, nll, seconds):
    return Record(experiment, seed, strategy, 10.0, labels, accuracy, nll, 0.5, None, None, seconds)


def curve(strategy, accuracies, seed=0):
    """Active-learning records of one seed at 10, 20, ... labels."""
    return [
        record(ACTIVE_LEARNING, seed, strategy, 10 * (i + 1), accuracy, 1.0, 0.002 if i else None)
        for i, accuracy in enumerate(accuracies)
    ]


def printed(table):
    file = io.StringIO()
    Console(file=file).print(table)
    return file.getvalue()


def cells(text, heading):
    """The cells of the row with this heading, one per strategy, without blanks inside."""
    (line,) = (line for line in text.splitlines() if line.startswith(heading))
    return line.removeprefix(heading).replace(" ± ", "±").split()


class TestData:
    def test_parts_hold_every_row_once(self):
        data = load_digits()
        parts = split(data, seed=3)
        rows = torch.cat([parts.pool.features, parts.evaluation.features, parts.test.features])
        assert torch.equal(
            rows.unique(dim=0, return_counts=True)[1], data.features.unique(dim=0, return_counts=True)[1]
        )
        assert len(rows) == len(data.features)
        assert float(data.features.max()) == 1.0

    def test_labels_stay_with_their_rows(self):
        data = load_digits()
        parts = split(data, seed=3)
        for part in (parts.pool, parts.evaluation, parts.test):
            for features, target in zip(part.features[:20], part.targets[:20], strict=True):
                (row,) = (data.features == features).all(1).nonzero().tolist()
                assert data.targets[row[0]] == target

    def test_split_follows_the_seed(self):
        data = load_digits()
        first, again, other = (split(data, seed).pool.features for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestProtocols:
    def test_a_seed_repeats_exactly_but_for_the_times(self, records):
        parts = split(load_digits(), 1)
        again = [
            *run._updating(parts, 1, QUICK),
            *run._active_learning(parts, 1, QUICK),
        ]
        assert [record[:-1] for record in again] == [record[:-1] for record in records if record.seed == 1]

    def test_every_strategy_is_measured_at_every_count(self, records):
        for name in DEMO_UPDATING:
            counts = [50] if name == "base" else [51, 60, 100]
            assert by_seed(records, UPDATING, name, "accuracy")[0] == counts
        for name in DEMO_ACTIVE:
            labels, values = by_seed(records, ACTIVE_LEARNING, name, "accuracy")
            assert labels == [10, 20, 30]
            assert values.shape == (2, 3)

    def test_strategies_start_from_the_same_model(self, records):
        starts = [by_seed(records, ACTIVE_LEARNING, name, "log_likelihood")[1][:, 0] for name in DEMO_ACTIVE]
        assert all(np.array_equal(start, starts[0]) for start in starts)
        assert starts[0][0] != starts[0][1], "seeds must differ"

    def test_strategies_differ_after_a_batch(self, records):
        ends = {tuple(by_seed(records, ACTIVE_LEARNING, name, "log_likelihood")[1][:, 1]) for name in DEMO_ACTIVE}
        assert len(ends) == len(DEMO_ACTIVE)

    def test_a_strategy_does_not_depend_on_those_before_it(self, records, monkeypatch):
        monkeypatch.setattr(run, "DEMO_ACTIVE", ("look_ahead_true",))
        alone = list(run._active_learning(split(load_digits(), 1), 1, QUICK))
        together = [record for record in records if record[:3] == (ACTIVE_LEARNING, 1, "look_ahead_true")]
        assert [record[:-1] for record in alone] == [record[:-1] for record in together]

    def test_choices_never_see_a_test_row_or_a_labelled_one(self, monkeypatch):
        parts = split(load_digits(), 0)
        seen = []
        choose = strategies.choose_batch

        def spy(strategy, model, labelled, unlabelled, evaluation, *rest):
            chosen = choose(strategy, model, labelled, unlabelled, evaluation, *rest)
            seen.append((unlabelled.features, evaluation.features, unlabelled.features[chosen]))
            return chosen

        monkeypatch.setattr(strategies, "choose_batch", spy)
        monkeypatch.setattr(run, "DEMO_ACTIVE", ("look_ahead_true",))
        list(run._active_learning(parts, 0, QUICK))
        for unlabelled, evaluation, _ in seen:
            assert torch.equal(evaluation, parts.evaluation.features)
            assert not (unlabelled[:, None] == parts.test.features[None]).all(2).any()
        assert [len(unlabelled) for unlabelled, *_ in seen] == [890, 880]
        first_batch = seen[0][2]
        assert not (seen[1][0][:, None] == first_batch[None]).all(2).any()

    def test_each_number_of_new_labels_starts_from_the_base(self, records):
        settings = Settings(seeds=2, new_labels=(50,))
        *_, paper, ours, refit = run._updating(split(load_digits(), 0), 0, settings)
        for alone in (paper, ours, refit):
            assert [alone[:-1]] == [
                record[:-1] for record in records if (record[:3], record.labels) == ((UPDATING, 0, alone.strategy), 100)
            ]

    def test_our_rule_closes_most_of_the_gap_to_a_refit(self, records):
        """On real data and 50 labels: three quarters of it in log-likelihood, when this was written."""
        end = {name: by_seed(records, UPDATING, name, "log_likelihood")[1][:, -1] for name in DEMO_UPDATING}
        assert (end["line_search"] - end["base"] > 0.5 * (end["refit"] - end["base"])).all()
        assert (end["refit"] > end["base"] + 0.1).all()

    def test_progress_counts_every_record(self):
        told = []
        measured = run_study(Settings(seeds=2, new_labels=(1,), acquisitions=1), lambda *args: told.append(args))
        assert len(told) == len(measured)
        assert [done for name, done, _ in told if name == UPDATING] == list(range(1, 9))
        assert told[-1] == (ACTIVE_LEARNING, 20, 20)

    def test_thread_count_is_given_back(self, monkeypatch):
        counts = [7]
        monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
        monkeypatch.setattr(torch, "set_num_threads", counts.append)
        with one_thread():
            assert counts == [7, 1]
        assert counts == [7, 1, 7]


class TestRecords:
    def test_mean_and_error(self):
        mean, error = mean_and_error(np.array([[1.0, 5.0], [3.0, 5.0]]))
        assert mean.tolist() == [2.0, 5.0]
        assert error.tolist() == [1.0, 0.0]
        assert mean_and_error(np.array([4.0]))[1] == 0.0

    def test_rows_are_seeds_whatever_the_order(self):
        unordered = curve("margin", [0.1, 0.2], seed=1) + curve("margin", [0.3, 0.4], seed=0)
        labels, values = by_seed(unordered, ACTIVE_LEARNING, "margin", "accuracy")
        assert labels == [10, 20]
        assert values.tolist() == [[0.3, 0.4], [0.1, 0.2]]

    def test_a_missing_measurement_is_an_error(self):
        with pytest.raises(ValueError, match="active_learning/margin"):
            by_seed(curve("margin", [0.1, 0.2], seed=1) + curve("margin", [0.3]), ACTIVE_LEARNING, "margin", "accuracy")


class TestReport:
    @pytest.fixture
    def made_up(self):
        levels = {
            "random": (0.2, 0.3),
            "margin": (0.4, 0.5),
            "margin_predicted": (0.6, 0.5),
            "margin_true": (0.7, 0.8),
            "look_ahead_true": (0.9, 1.0),
        }
        return [
            record
            for name, ends in levels.items()
            for seed, end in enumerate(ends)
            for record in curve(name, [0.1, end], seed)
        ]

    def test_area_is_the_mean_over_the_curve(self, made_up):
        text = printed(active_learning_table(made_up))
        assert cells(text, "AULC") == ["17.5±2.5", "27.5±2.5", "*32.5±2.5", "42.5±2.5", "52.5±2.5"]

    def test_differences_are_paired(self, made_up):
        text = printed(active_learning_table(made_up))
        assert cells(text, "vs top-b") == ["-10.0±0.0", "-", "+5.0±5.0", "+15.0±0.0", "+25.0±0.0"]

    def test_best_is_marked_among_usable_strategies_alone(self, made_up):
        text = printed(active_learning_table(made_up))
        assert cells(text, "20") == ["25.0±5.0", "45.0±5.0", "*55.0±5.0", "75.0±5.0", "95.0±5.0"]
        assert "*" not in "".join(cells(text, "10")), "all are equal"

    def test_time_per_batch_leaves_the_start_out(self, made_up):
        assert cells(printed(active_learning_table(made_up)), "ms/batch") == ["2.0±0.0"] * 5

    def test_updating_table(self):
        ends = {"official_10": (0.5, 3.0, 0.001), "line_search": (0.7, 2.0, 0.002), "refit": (0.8, 1.0, 0.003)}
        made_up = [record(UPDATING, 0, "base", 50, 0.6, 2.5, None)]
        made_up += [record(UPDATING, 0, name, 60, *end) for name, end in ends.items()]
        text = printed(updating_table(made_up, [10]))
        assert "fitted to 50" in text
        assert cells(text, "   +10   base, no new labels") == ["60.0±0.0", "-2.500±0.000", "-"]
        assert cells(text, "         paper's rule [1]") == ["50.0±0.0", "-3.000±0.000", "1.00±0.00"]
        assert cells(text, "         ours [2]") == ["*70.0±0.0", "*-2.000±0.000", "2.00±0.00"]
        assert cells(text, "         refit [3]") == ["80.0±0.0", "-1.000±0.000", "3.00±0.00"]

    def test_notes_fit_eighty_columns(self):
        assert max(map(len, (UPDATING_NOTES + "\n" + ACTIVE_NOTES).splitlines())) <= 80

    def test_tables_fit_eighty_columns_without_control_codes(self, records):
        text = printed(updating_table(records, [1, 10, 50])) + printed(active_learning_table(records))
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        assert not [character for character in text if ord(character) < 32 and character != "\n"]

    def test_csv_holds_every_record(self, records, tmp_path):
        path = tmp_path / "results.csv"
        write_csv(path, records)
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == Record._fields
        assert [[None if cell == "" else cell for cell in row] for row in rows] == [
            [None if value is None else str(value) for value in record] for record in records
        ]

    def test_a_failed_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "results.csv"
        path.write_text("old")

        def fail_halfway(scratch):
            scratch.write_text("half")
            raise OSError("disk full")

        with pytest.raises(OSError, match="disk full"):
            replace_file(path, fail_halfway)
        assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]
        assert path.read_text() == "old"


def test_picture_is_a_png_of_paper_size(records, tmp_path):
    path = tmp_path / "learning_curves.png"
    draw_learning_curves(path, records)
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width = int.from_bytes(header[16:20], "big")
    assert 1300 < width < 1600
    assert [file.name for file in tmp_path.iterdir()] == ["learning_curves.png"]
