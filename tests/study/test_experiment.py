import csv
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lapal_ext.atomic_file import replace_file
from lapal_ext.study import experiment
from lapal_ext.study.configuration import Configuration, Source, environment
from lapal_ext.study.experiment import (
    MismatchError,
    one_thread,
    read_experiment,
    run_experiment,
    run_unit,
    units,
    write_csv,
)
from lapal_ext.study.records import Record
from tests.fuzz.processes import HANGS, ROOT, forked, kill_at_step
from tests.fuzz.tally import count

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
    refit_every=1,
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
    refit_every=None,
)


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    run_experiment(folder, ACTIVE, DIGITS)
    return folder


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def results(folder):
    return (folder / "results.csv").read_bytes()


class TestResults:
    def test_one_row_per_seed_arm_and_step(self, finished):
        rows = table(finished / "results.csv")
        expected = [
            (str(seed), name, str(labels)) for seed in range(3) for name in ACTIVE.strategies for labels in (10, 15, 20)
        ]
        assert [(row["seed"], row["strategy"], row["labels"]) for row in rows] == expected
        assert not [name for name in rows[0] if "seconds" in name]
        assert all(0.0 <= float(row[name]) <= 1.0 for row in rows for name in ("accuracy", "ece", "aulc"))
        timed = table(finished / "timings.csv")
        assert len(timed) == 3 * len(ACTIVE.strategies) * 2
        assert all(float(row[name]) > 0.0 for row in timed for name in ("choice_seconds", "learning_seconds"))
        begun = json.loads((finished / "configuration.json").read_text())
        assert begun["configuration"]["strategies"] == list(ACTIVE.strategies)

    def test_an_experiment_is_read_back_as_it_was(self, finished):
        unit = units(ACTIVE)[1]
        expected = experiment._read_unit(finished, unit)
        configuration, versions, records = read_experiment(finished)
        assert (configuration, versions) == (ACTIVE, environment())
        assert [r for r in records if (r.seed, r.strategy) == (0, "typiclust")] == expected
        assert expected[0][-2:] == (None, None)
        assert all(seconds > 0.0 for seconds in expected[1][-2:])

    def test_a_unit_does_not_depend_on_those_before_it(self, finished, tmp_path):
        run_experiment(tmp_path, replace(ACTIVE, strategies=("margin_true",)), DIGITS)
        alone = [record[:-2] for record in read_experiment(tmp_path).records]
        together = [record for record in read_experiment(finished).records if record.strategy == "margin_true"]
        assert alone == [record[:-2] for record in together]

    def test_an_arm_that_is_never_refitted_equals_one_with_refit_every_0(self):
        found = []
        for name, every in (("margin", 0), ("margin_updated", 1), ("margin", 1)):
            configuration = replace(ACTIVE, strategies=(name,), refit_every=every)
            found.append([record.nll for record in run_unit(configuration, DIGITS, units(configuration)[0])])
        assert found[0] == found[1] != found[2]

    def test_updating_has_a_unit_per_seed_and_prior(self, tmp_path):
        run_experiment(tmp_path, UPDATES, DIGITS)
        records = read_experiment(tmp_path).records
        assert len(units(UPDATES)) == 6
        assert len(records) == 6 * 5
        assert {record.prior_precision for record in records} == {1.0, 10.0}
        assert all(record.choice_seconds is None for record in records)
        assert all((record.learning_seconds is None) == (record.strategy == "base") for record in records)

    def test_a_table_holds_every_field_and_leaves_none_empty(self, tmp_path):
        records = [Record("updating", 0, "base", 10.0, 50, 0.1 + 0.2, 1.0, 0.5, None, None, None, None)]
        write_csv(tmp_path / "results.csv", records, Record._fields)
        (row,) = table(tmp_path / "results.csv")
        assert tuple(row) == Record._fields
        assert list(row.values()) == ["" if value is None else str(value) for value in records[0]]

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

    def test_thread_count_is_restored(self, monkeypatch):
        counts = [7]
        monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
        monkeypatch.setattr(torch, "set_num_threads", counts.append)
        with one_thread():
            assert counts == [7, 1]
        assert counts == [7, 1, 7]


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
        run_experiment(tmp_path, ACTIVE, DIGITS, advance=told.append)
        assert tuple(computed) == lost
        assert told == [10, 1, 1]
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
            ({"refit_every": 2}, "refit_every was 1 and is 2"),
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


def arguments(folder, jobs):
    """Arguments of the command line that runs ``ACTIVE``."""
    options = ["experiment", "active-learning", "--data", "digits", "--out", str(folder), "--seeds", "3"]
    options += ["--arms", *ACTIVE.strategies, "--batch-size", "5", "--initial", "10", "--acquisitions", "2"]
    return [*options, "--subset", "200", "--jobs", str(jobs)]


# Sends a signal to itself, or SIGINT to its process group, before it opens, moves or removes a file for the n-th time.
SIGNALLED = """
import os, signal, sys
from tests.fuzz.processes import at_step
from lapal_ext.__main__ import main

def send(number):
    os.killpg(0, number) if number == signal.SIGINT else os.kill(os.getpid(), number)

number, step, folder, *arguments = sys.argv[1:]
at_step(int(step), folder, lambda: send(int(number)))
sys.exit(main(arguments))
"""


def signalled(number, step, folder, jobs):
    """Run ``ACTIVE`` by the command line in a new process group, which sends itself a signal at a step."""
    command = [sys.executable, "-c", SIGNALLED, str(int(number)), str(step), str(folder), *arguments(folder, jobs)]
    return subprocess.run(command, process_group=0, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)


def killed_run(folder, step):
    kill_at_step(step, folder)
    run_experiment(folder, ACTIVE, DIGITS)


# The number of steps that every run makes at least, whatever an earlier one has left.
STEPS = 2 * len(units(ACTIVE))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX processes")
class TestKill:
    @pytest.mark.parametrize("seed", range(3))
    def test_a_killed_run_ends_with_the_same_file(self, seed, finished, tmp_path):
        draw = random.Random(seed)
        for _ in range(2):
            step = draw.randrange(1, STEPS)
            assert forked(partial(killed_run, tmp_path, step)) == -signal.SIGKILL
        run_experiment(tmp_path, ACTIVE, DIGITS)
        assert results(tmp_path) == results(finished)
        assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(20))
    def test_many_killed_runs_end_with_the_same_file(self, seed, finished, tmp_path):
        draw = random.Random(100 + seed)
        for _ in range(3):
            # With two jobs, the killed process only distributes the work, and uses fewer files.
            jobs = draw.choice([1, 2])
            done = signalled(signal.SIGKILL, draw.randrange(1, STEPS if jobs == 1 else 4), tmp_path, jobs)
            assert done.returncode == -signal.SIGKILL
        run_experiment(tmp_path, ACTIVE, DIGITS)
        assert results(tmp_path) == results(finished)
        count("killed", "experiments killed at random, 3 times each, that ended with the identical file")

    @pytest.mark.slow
    def test_processes_give_the_same_file_as_one(self, finished, tmp_path):
        command = [sys.executable, "-m", "lapal_ext", *arguments(tmp_path, 2)]
        assert subprocess.run(command, check=False).returncode == 0
        assert results(tmp_path) == results(finished)

    @pytest.mark.slow
    @pytest.mark.skipif(
        not hasattr(os, "pidfd_open"), reason="needs pidfd_open to wait for the children of another process"
    )
    def test_processes_end_with_the_one_that_started_them(self, tmp_path):
        command = [sys.executable, "-m", "lapal_ext", *arguments(tmp_path, 2)]
        with subprocess.Popen(command) as process:
            while not list(tmp_path.glob("units/seed*")):
                assert process.poll() is None
                time.sleep(0.01)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) >= 2
            watched = [os.pidfd_open(int(child)) for child in children]
            process.kill()
        for descriptor in watched:
            ended, _, _ = select.select([descriptor], [], [], HANGS)
            assert ended
            os.close(descriptor)

    @pytest.mark.slow
    @pytest.mark.parametrize("jobs", [1, 2])
    def test_an_interrupt_ends_all_processes_quietly(self, jobs, finished, tmp_path):
        done = signalled(signal.SIGINT, 5 if jobs == 1 else 3, tmp_path, jobs)
        assert done.returncode == 130
        assert done.stderr == "lapal-ext: interrupted\n"
        run_experiment(tmp_path, ACTIVE, DIGITS)
        assert results(tmp_path) == results(finished)
