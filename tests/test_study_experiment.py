import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lapal_ext.posterior import LastLayerLaplace
from lapal_ext.study import experiment, metrics, protocols, strategies
from lapal_ext.study.configuration import Configuration, Source, default_batch, environment
from lapal_ext.study.data import load_digits, split
from lapal_ext.study.experiment import MismatchError, read_records, run_experiment, units
from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.run import one_thread
from lapal_ext.study.strategies import BATCH_STRATEGIES, LOOK_AHEAD_STRATEGIES, UPDATING_STRATEGIES

DIGITS = Source(None)
ACTIVE = Configuration(
    experiment="active_learning",
    data="digits",
    data_sha256=None,
    strategies=("random", "typiclust", "margin_true", "look_ahead_predicted"),
    seeds=3,
    prior_precisions=(10.0,),
    initial_labels=10,
    evaluation_rows=300,
    batch_size=5,
    acquisitions=2,
    subset=200,
)
UPDATES = replace(
    ACTIVE,
    experiment="updating",
    strategies=("base", "line_search", "refit"),
    prior_precisions=(1.0, 10.0),
    initial_labels=30,
    new_labels=(1, 5),
    batch_size=None,
    acquisitions=None,
    subset=None,
)


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    run_experiment(folder, ACTIVE, DIGITS)
    return folder


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(folder):
    return (folder / "results.csv").read_bytes()


class TestMetrics:
    def test_against_their_definitions(self):
        draw = torch.Generator().manual_seed(0)
        p = torch.rand(500, 4, generator=draw, dtype=torch.float64).pow(3) + 1e-3
        p = p / p.sum(1, keepdim=True)
        y = torch.randint(4, (500,), generator=draw)
        squares = [sum((float(p[i, k]) - float(k == y[i])) ** 2 for k in range(4)) for i in range(500)]
        assert metrics.brier(p, y) == pytest.approx(sum(squares) / 500)
        best, right = p.max(1).values, p.argmax(1) == y
        gaps = 0.0
        for low in range(15):
            members = (best > low / 15) & (best <= (low + 1) / 15)
            if bool(members.any()):
                gaps += float(members.sum()) / 500 * abs(float(best[members].mean() - right[members].double().mean()))
        assert metrics.calibration_error(p, y) == pytest.approx(gaps, abs=1e-6)

    def test_a_record_of_a_curve_carries_its_area_so_far(self):
        y = torch.tensor([0, 1])
        right, half = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.9, 0.1], [0.6, 0.4]])
        outcomes = [metrics.Outcome("margin", 10 + i, p.double().log(), None) for i, p in enumerate((half, right))]
        first, second = metrics.measure(outcomes, y, "active_learning", 0, 1.0)
        assert (first.accuracy, first.aulc, second.accuracy, second.aulc) == (0.5, 0.5, 1.0, 0.75)
        assert second.nll == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
        assert second.ece is None
        assert next(metrics.measure(outcomes, y, "updating", 0, 1.0)).aulc is None


class TestProtocols:
    def test_candidates_are_free_rows_of_one_draw_per_query(self):
        first, other = torch.tensor([0, 5, 7]), torch.tensor([1, 5, 9])
        mine, yours = (protocols.candidates(300, labelled, 100, 3, 2) for labelled in (first, other))
        assert len(mine) == len(yours) == 100
        assert not set(mine.tolist()) & set(first.tolist())
        assert mine.tolist() == sorted(set(mine.tolist()))
        # Rows that only one of the two has labelled make room for the next of the same order: hence at most two differ.
        assert len(set(mine.tolist()) & set(yours.tolist())) >= 98
        assert not torch.equal(mine, protocols.candidates(300, first, 100, 3, 1))
        assert not torch.equal(mine, protocols.candidates(300, first, 100, 4, 2))
        assert len(protocols.candidates(300, first, None, 3, 2)) == 297

    def test_all_strategies_of_a_query_see_the_same_candidates(self, monkeypatch):
        parts, seen = split(load_digits(), 0), []
        choose = strategies.choose_batch

        def spy(name, model, labelled, unlabelled, *rest):
            seen.append(unlabelled.features)
            return choose(name, model, labelled, unlabelled, *rest)

        monkeypatch.setattr(strategies, "choose_batch", spy)
        for name in ("margin", "margin_predicted", "look_ahead_true"):
            list(protocols.active_learning(parts, 0, 10, 5, 1, name, subset=100))
        assert len(seen) == 3
        assert all(torch.equal(features, seen[0]) for features in seen)
        assert len(seen[0]) == 100

    @pytest.mark.parametrize("name", BATCH_STRATEGIES)
    def test_every_strategy_picks_distinct_rows_and_only_those_named_true_see_labels(self, name):
        parts = split(load_digits(), 0)
        model = LastLayerLaplace.fit_map(parts.pool.features[:20], parts.pool.targets[:20], 10)

        def choose(shift):
            free = Labelled(parts.pool.features[20:220], (parts.pool.targets[20:220] + shift) % 10)
            evaluation = Labelled(parts.evaluation.features, (parts.evaluation.targets + shift) % 10)
            draw = torch.Generator().manual_seed(0)
            return strategies.choose_batch(name, model, parts.pool.features[:20], free, evaluation, 8, draw).tolist()

        picks = choose(0)
        assert len(set(picks)) == 8
        assert set(picks) <= set(range(200))
        assert (picks == choose(1)) == (not name.endswith("_true"))

    def test_names_say_what_nobody_could_know(self):
        for name in (*BATCH_STRATEGIES, *LOOK_AHEAD_STRATEGIES):
            text = strategies.describe(name)
            assert ("label before next pick" in text or "upper bound" in text) == name.endswith("_true")
        every = (*BATCH_STRATEGIES, *UPDATING_STRATEGIES)
        assert len({strategies.describe(name) for name in every}) == len(every)

    def test_updating_runs_every_arm_from_one_mean(self):
        parts = split(load_digits(), 0)
        outcomes = {o.strategy: o for o in protocols.updating(parts, 0, 30, (20,), UPDATING_STRATEGIES)}
        assert tuple(outcomes) == UPDATING_STRATEGIES
        order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
        old, new = order[:30], order[30:50]
        pool = parts.pool
        for curvature, step, gamma, name in (
            ("categorical", "line_search", 1.0, "line_search"),
            ("categorical", "newton", 1.0, "newton"),
            ("gaussian", "newton", 3.0, "official_3"),
        ):
            model = LastLayerLaplace.fit_map(pool.features[old], pool.targets[old], 10, curvature=curvature)
            model.update(pool.features[new], pool.targets[new], step, gamma)
            expected = model.predict_logits(parts.test.features).double().log_softmax(1)
            assert torch.equal(outcomes[name].log_probabilities, expected)
        sums = outcomes["monte_carlo_0.05"].log_probabilities.exp().sum(1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        assert outcomes["base"].labels == 30
        assert outcomes["refit"].labels == 50

    @pytest.mark.parametrize("factor", [1e-3, 1e3])
    def test_the_scale_of_features_does_not_matter(self, factor):
        nll = []
        for scale in (1.0, factor):
            parts = DIGITS.split(0, 300, scale)
            end = list(protocols.updating(parts, 0, 30, (20,), ("line_search",)))[-1]
            nll.append(float(torch.nn.functional.nll_loss(end.log_probabilities, parts.test.targets)))
        assert nll[0] == pytest.approx(nll[1], rel=1e-4)


class TestConfiguration:
    def test_batches_are_the_papers_where_it_has_any(self):
        assert default_batch("banking77_minilm.npz", 77) == 200
        assert default_batch("clinc150_minilm.npz", 150) == 150
        assert [default_batch("mine.npz", count) for count in (2, 20, 500)] == [10, 20, 50]

    def test_the_environment_names_versions_and_kernels(self):
        found = environment()
        assert found["torch"] == torch.__version__
        assert found["kernels"]
        assert set(found) >= {"lapal_ext", "commit", "numpy", "scikit-learn", "torchmetrics", "processor"}


class TestResults:
    def test_one_row_per_seed_arm_and_step(self, finished):
        rows = table(finished / "results.csv")
        expected = [
            (str(seed), name, str(labels)) for seed in range(3) for name in ACTIVE.strategies for labels in (10, 15, 20)
        ]
        assert [(row["seed"], row["strategy"], row["labels"]) for row in rows] == expected
        assert "seconds" not in rows[0]
        assert all(0.0 <= float(row[name]) <= 1.0 for row in rows for name in ("accuracy", "ece", "aulc"))
        timed = table(finished / "timings.csv")
        assert len(timed) == 3 * len(ACTIVE.strategies) * 2
        assert all(float(row["seconds"]) > 0.0 for row in timed)
        begun = json.loads((finished / "configuration.json").read_text())
        assert begun["configuration"]["strategies"] == list(ACTIVE.strategies)

    def test_records_are_read_back_as_they_were(self, finished):
        unit = units(ACTIVE)[1]
        expected = experiment._read_unit(finished, unit)
        assert [r for r in read_records(finished) if (r.seed, r.strategy) == (0, "typiclust")] == expected
        assert expected[0].seconds is None

    def test_a_unit_does_not_depend_on_those_before_it(self, finished, tmp_path):
        run_experiment(tmp_path, replace(ACTIVE, strategies=("margin_true",)), DIGITS)
        alone = [record[:-1] for record in read_records(tmp_path)]
        assert alone == [record[:-1] for record in read_records(finished) if record.strategy == "margin_true"]

    def test_updating_has_a_unit_per_seed_and_prior(self, tmp_path):
        run_experiment(tmp_path, UPDATES, DIGITS)
        records = read_records(tmp_path)
        assert len(units(UPDATES)) == 6
        assert len(records) == 6 * 5
        assert {record.prior_precision for record in records} == {1.0, 10.0}


class TestResume:
    def test_only_what_is_missing_is_computed(self, finished, tmp_path, monkeypatch):
        run_experiment(tmp_path, ACTIVE, DIGITS)
        lost = units(ACTIVE)[3], units(ACTIVE)[7]
        for unit in lost:
            (tmp_path / "units" / unit.file_name).unlink()
        (tmp_path / "results.csv").unlink()
        computed, told = [], []
        compute = experiment._compute
        monkeypatch.setattr(experiment, "_compute", lambda *args: computed.append(args[-1]) or compute(*args))
        run_experiment(tmp_path, ACTIVE, DIGITS, progress=lambda *args: told.append(args))
        assert tuple(computed) == lost
        assert told == [(10, 12), (11, 12), (12, 12)]
        assert results(tmp_path) == results(finished)

    def test_a_finished_run_changes_nothing(self, finished):
        before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
        run_experiment(finished, ACTIVE, DIGITS)
        assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("damage", [b"", b"[{", b"[1, 2]", b'{"a": 1}', b"\xff\xfe"])
    def test_a_damaged_unit_is_computed_anew(self, damage, tmp_path):
        small = replace(ACTIVE, strategies=("random",), seeds=1)
        run_experiment(tmp_path, small, DIGITS)
        whole = results(tmp_path)
        (tmp_path / "units" / units(small)[0].file_name).write_bytes(damage)
        run_experiment(tmp_path, small, DIGITS)
        assert results(tmp_path) == whole

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seeds": 4}, "seeds was 3 and is 4"),
            ({"subset": 199}, "subset was 200 and is 199"),
            ({"data_sha256": "ab"}, "data_sha256 was None and is 'ab'"),
            ({"strategies": ("random",)}, "strategies was"),
        ],
    )
    def test_another_configuration_is_refused_and_nothing_is_touched(self, change, message, finished):
        before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
        with pytest.raises(MismatchError, match=message):
            run_experiment(finished, replace(ACTIVE, **change), DIGITS)
        assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before

    def test_other_versions_are_refused(self, finished, monkeypatch):
        monkeypatch.setattr(experiment, "environment", lambda: environment() | {"torch": "0.1"})
        with pytest.raises(MismatchError, match=r"torch was '.*' and is '0\.1'"):
            run_experiment(finished, ACTIVE, DIGITS)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"configuration": 1}'])
    def test_a_foreign_configuration_is_refused(self, text, tmp_path):
        (tmp_path / "configuration.json").write_text(text)
        with pytest.raises(MismatchError, match="no configuration"):
            run_experiment(tmp_path, ACTIVE, DIGITS)


def start(folder, jobs):
    """The command line of ``ACTIVE``, in a process group of its own."""
    arguments = ["experiment", "active-learning", "--data", "digits", "--out", str(folder), "--seeds", "3"]
    arguments += ["--arms", *ACTIVE.strategies, "--batch-size", "5", "--initial", "10", "--acquisitions", "2"]
    arguments += ["--subset", "200", "--jobs", str(jobs)]
    return subprocess.Popen([sys.executable, "-m", "lapal_ext", *arguments], stdout=subprocess.DEVNULL)


def kill_at_random(folder, jobs, draw):
    """SIGKILL a little after a random number of units is on disk; return how many there are then."""
    process = start(folder, jobs)
    awaited = draw.randrange(len(units(ACTIVE)))
    while process.poll() is None and len(list(folder.glob("units/seed*"))) < awaited:
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.03))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len(list(folder.glob("units/seed*")))


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not a signal there")
class TestKill:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_killed_run_ends_with_the_same_file(self, seed, finished, tmp_path):
        assert kill_at_random(tmp_path, 1, random.Random(seed)) < len(units(ACTIVE))
        assert not (tmp_path / "results.csv").exists()
        run_experiment(tmp_path, ACTIVE, DIGITS)
        assert results(tmp_path) == results(finished)
        assert not list(tmp_path.rglob(".*.json"))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(20))
    def test_campaign(self, seed, finished, tmp_path):
        draw = random.Random(100 + seed)
        for _ in range(3):
            kill_at_random(tmp_path, draw.choice([1, 2]), draw)
        run_experiment(tmp_path, ACTIVE, DIGITS)
        assert results(tmp_path) == results(finished)

    @pytest.mark.slow
    def test_processes_give_the_same_file_as_one_and_end_with_their_parent(self, finished, tmp_path):
        process = start(tmp_path, 2)
        assert process.wait() == 0
        assert results(tmp_path) == results(finished)
