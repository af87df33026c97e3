import io
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest
import torch

from lapal_ext.cli import main
from lapal_ext.cli.errors import CommandError, explained
from lapal_ext.errors import StorageError
from lapal_ext.study import presets
from lapal_ext.study.feature_file import Labelled, checksum, save_features
from lapal_ext.study.recipes import RECIPES, RecipeError
from lapal_ext.study.recipes.recipe import Made, Recipe

_WHAT_IS_LOADED = """
import runpy, sys
sys.argv = ["lapal-ext"]
import lapal_ext
lazy = ("lapal_ext.study", "lapal_ext.cli", "sklearn", "matplotlib", "rich", "torchmetrics")
print([name for name in lazy if name in sys.modules])
try:
    runpy.run_module("lapal_ext", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print(end.code)
print([name for name in lazy if name in sys.modules])
"""


def test_package_and_command_load_no_more_than_they_need():
    done = subprocess.run([sys.executable, "-c", _WHAT_IS_LOADED], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "2", "['lapal_ext.cli']"]
    assert "lapal-ext demo --out results" in done.stderr


def test_without_a_command_it_prints_help_and_exits_with_status_2(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "demo" in err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_help_has_an_example(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    assert "example:\n  lapal-ext demo --out results" in capsys.readouterr().out


@pytest.mark.parametrize("seeds", ["1", "0", "-3", "2.5", "many"])
def test_seeds_must_be_two_or_more(seeds, capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--seeds", seeds])
    assert end.value.code == 2
    assert f"argument --seeds: must be a whole number of at least 2, got '{seeds}'" in capsys.readouterr().err


class TestDemo:
    @pytest.fixture
    def asked(self, monkeypatch):
        """The numbers of seeds with which demos were started; the demo itself is shortened."""
        calls = []
        whole = presets.demo

        def short(seeds):
            calls.append(seeds)
            updating, active_learning = whole(2)
            return replace(updating, new_labels=(1, 2, 10, 50)), replace(active_learning, acquisitions=1)

        monkeypatch.setattr(presets, "demo", short)
        return calls

    def test_it_prints_tables_and_leaves_two_files(self, asked, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("COLUMNS", "80")
        folder = tmp_path / "new" / "results"
        assert main(["demo", "--out", str(folder), "--seeds", "3"]) == 0
        assert asked == [3]
        assert sorted(file.name for file in folder.iterdir()) == ["learning_curves.png", "results.csv"]
        out, err = capsys.readouterr()
        for expected in (
            "Kernels:",
            "50 new labels",
            "never refitted",
            "look-ahead, true labels: ",
            "AULC",
            "[ms]",
            "Best: ",
        ):
            assert expected in out
        assert "2 new labels" not in out
        assert "\x1b" not in out
        assert max(map(len, out.split("Wrote")[0].splitlines())) <= 80
        assert str(folder / "results.csv") in out.replace("\n", "")
        assert not err
        header, *rows = (folder / "results.csv").read_text().splitlines()
        assert header.startswith("experiment,seed,strategy,prior_precision,labels,accuracy,nll,brier,ece,aulc,")
        assert header.endswith(",choice_seconds,learning_seconds")
        assert len(rows) == 2 * (1 + 3 * 4) + 2 * 6 * 2

    def test_a_second_demo_replaces_the_first(self, asked, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "lapal-ext-demo"
        folder.mkdir()
        (folder / "results.csv").write_text("old")
        (folder / "notes").write_text("mine")
        assert main(["demo"]) == 0
        assert asked[0] >= 5, "too few seeds for a standard error"
        assert (folder / "results.csv").read_text().startswith("experiment,")
        assert (folder / "notes").read_text() == "mine"

    @pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "rich"])
    def test_missing_extra_is_named(self, missing, asked, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, missing, None)
        assert main(["demo", "--out", str(tmp_path)]) == 1
        message = 'lapal-ext demo needs scikit-learn, matplotlib and rich: pip install "lapal_ext[demo]"'
        assert message in capsys.readouterr().err
        assert not asked

    def test_out_must_not_be_a_file(self, asked, tmp_path, capsys):
        file = tmp_path / "file"
        file.write_text("mine")
        assert main(["demo", "--out", str(file)]) == 1
        assert f"--out must be a folder, but {file} is a file" in capsys.readouterr().err
        assert main(["demo", "--out", str(file / "below")]) == 1
        assert "Not a directory" in capsys.readouterr().err
        assert file.read_text() == "mine"
        assert not asked

    def test_a_folder_that_cannot_be_written_to_is_refused_before_the_run(self, asked, tmp_path, monkeypatch, capsys):
        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        assert main(["demo", "--out", str(tmp_path)]) == 1
        assert f"got {tmp_path}: Permission denied" in capsys.readouterr().err
        assert not asked

    def test_an_interrupted_demo_writes_nothing(self, tmp_path, monkeypatch, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("lapal_ext.study.experiment.run_unit", interrupt)
        assert main(["demo", "--out", str(tmp_path)]) == 130
        assert capsys.readouterr().err == "lapal-ext: interrupted\n"
        assert list(tmp_path.iterdir()) == []


class TestExperiment:
    @pytest.fixture
    def run(self, monkeypatch):
        """The arguments of every call of ``run_experiment``, which does nothing."""
        calls = []
        monkeypatch.setattr("lapal_ext.study.experiment.run_experiment", lambda *arguments: calls.append(arguments))
        return calls

    def test_defaults_are_the_papers_protocol(self, run, tmp_path, capsys):
        assert main(["experiment", "active-learning", "--data", "digits", "--out", str(tmp_path / "new")]) == 0
        ((folder, configuration, source, jobs, _),) = run
        assert (folder, source.path, jobs) == (tmp_path / "new", None, 1)
        assert (configuration.subset, configuration.acquisitions, configuration.batch_size) == (1000, 20, 10)
        assert configuration.seeds == 10
        assert configuration.refit_every == 1
        assert {"uherding", "maxherding", "uherding_true", "uherding_updated"} <= set(configuration.strategies)
        assert f"lapal-ext report {folder}" in capsys.readouterr().out

    def test_options_reach_the_configuration(self, run, tmp_path):
        arguments = "--arms base refit --prior-precisions 1 1e2 --initial 20 --new-labels 5 1 --seeds 2 --jobs 3"
        arguments += " --feature-factor 1e-3 --evaluation-rows 7"
        assert main(["experiment", "updating", "--data", "digits", "--out", str(tmp_path), *arguments.split()]) == 0
        ((_, configuration, _, jobs, _),) = run
        assert jobs == 3
        assert configuration.as_json() == {
            "experiment": "updating",
            "data": "digits",
            "data_sha256": None,
            "strategies": ["base", "refit"],
            "seeds": 2,
            "prior_precisions": [1.0, 100.0],
            "initial_labels": 20,
            "evaluation_rows": 7,
            "feature_factor": 1e-3,
            "new_labels": [1, 5],
            "batch_size": None,
            "acquisitions": None,
            "subset": None,
            "refit_every": None,
            "calibration": True,
        }

    @pytest.mark.parametrize("kind", ["active-learning", "look-ahead"])
    def test_refits_and_arms_without_them_reach_the_configuration(self, kind, run, tmp_path):
        arguments = ["experiment", kind, "--data", "digits", "--out", str(tmp_path)]
        arms = ["margin", "margin_updated", "look_ahead_predicted_updated"]
        assert main([*arguments, "--refit-every", "0", "--arms", *arms]) == 0
        assert main([*arguments, "--refit-every", "5"]) == 0
        assert [configuration.refit_every for _, configuration, *_ in run] == [0, 5]
        assert run[0][1].strategies == tuple(arms)

    def test_one_report_compares_refits_and_updates(self, tmp_path):
        arguments = "--seeds 2 --arms margin uherding uherding_updated --initial 10 --batch-size 5 --acquisitions 3"
        folder = ["--data", "digits", "--out", str(tmp_path)]
        assert main(["experiment", "active-learning", *folder, "--refit-every", "2", *arguments.split()]) == 0
        assert main(["report", str(tmp_path)]) == 0
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        title, verdict, *_ = text.split("\n\n")
        assert title == "# Active learning on digits"
        assert verdict.startswith("**Best: ")
        assert "a refit after every 2 batches and a closed-form update" in " ".join(text.split())
        assert "| ms of choice per batch | ms of learning per batch |" in text
        assert "uherding, closed-form updates, never refitted" in text
        assert "Thirds of the curve" in text
        assert {file.name for file in tmp_path.glob("*.png")} == {"learning_curves.png", "time_vs_accuracy.png"}

    @pytest.mark.parametrize("by_name", [False, True])
    def test_a_file_of_features_is_found(self, by_name, run, tmp_path, monkeypatch):
        file = tmp_path / "banking77_mine.npz"
        draw = np.random.default_rng(0)
        parts = {f"x_{part}": draw.normal(size=(1500, 3)).astype(np.float16) for part in ("train", "test")}
        parts |= {f"y_{part}": np.arange(1500) % 77 for part in ("train", "test")}
        np.savez(file, class_names=np.array([str(k) for k in range(77)]), **parts)
        monkeypatch.setenv("LAPAL_EXT_DATA", str(tmp_path))
        data = "banking77_mine" if by_name else str(file)
        assert main(["experiment", "look-ahead", "--data", data, "--out", str(tmp_path / "out")]) == 0
        ((_, configuration, source, *_),) = run
        assert source.path == str(file)
        assert configuration.data == "banking77_mine.npz"
        assert len(configuration.data_sha256) == 64
        assert (configuration.batch_size, configuration.initial_labels, configuration.acquisitions) == (200, 200, 5)
        assert configuration.evaluation_rows == 300
        assert "look_ahead_true" in configuration.strategies

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("--data nowhere", "--data must be digits, an .npz file"),
            ("--data nowhere", "or a recipe (debian_sections, fashion_mnist, wordnet_supersenses), got 'nowhere'"),
            ("--data digits --arms margin nothing", "--arms must be of random, margin"),
            ("--data digits --arms nothing_updated", "with or without the suffix _updated, got nothing_updated"),
            ("--data digits --acquisitions 90", "must be at most the 900 rows of the pool together, got 910"),
            ("--data digits --batch-size 20 --subset 19", "--subset must be at least the batch size 20, got 19"),
            ("--data digits --evaluation-rows 801", "--evaluation-rows must be at most 800 of digits, got 801"),
        ],
    )
    def test_impossible_options_are_explained(self, arguments, message, run, tmp_path, capsys):
        assert main(["experiment", "active-learning", "--out", str(tmp_path), *arguments.split()]) == 1
        assert message in capsys.readouterr().err
        assert not run

    @pytest.fixture
    def recipe(self, tmp_path, monkeypatch):
        """One entry for each time that the recipe "fake" was run; its cache is the folder "cache"."""
        calls = []

        def make(progress):
            calls.append(progress)
            part = Labelled(torch.eye(3).repeat(20, 1), torch.arange(60) % 3)
            return Made(part, part, ("a", "b", "c"))

        monkeypatch.setenv("LAPAL_EXT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(RECIPES, "fake", Recipe("a moment", {}, make))
        return calls

    def test_a_recipe_is_built_at_its_first_use(self, recipe, run, tmp_path, capsys):
        arguments = ["experiment", "updating", "--data", "fake", "--new-labels", "1", "--out", str(tmp_path / "out")]
        file = tmp_path / "cache" / "fake.npz"
        assert main(arguments) == 0
        assert capsys.readouterr().err == f"Making fake for the first use: a moment.\nWrote {file}.\n"
        assert main(arguments) == 0
        assert not capsys.readouterr().err
        assert recipe == [False], "a progress bar without a terminal"
        for _, configuration, source, *_ in run:
            assert source.path == str(file)
            assert (configuration.data, configuration.data_sha256) == ("fake.npz", checksum(file))

    def test_a_file_of_ones_own_comes_before_a_recipe(self, recipe, run, tmp_path, monkeypatch):
        part = Labelled(torch.eye(2).repeat(30, 1), torch.arange(60) % 2)
        save_features(tmp_path / "fake.npz", part, part, ("a", "b"))
        monkeypatch.setenv("LAPAL_EXT_DATA", str(tmp_path))
        assert main(["experiment", "updating", "--data", "fake", "--new-labels", "1", "--out", str(tmp_path)]) == 0
        assert run[0][2].path == str(tmp_path / "fake.npz")
        monkeypatch.setenv("LAPAL_EXT_DATA", str(tmp_path / "cache"))
        assert main(["experiment", "updating", "--data", "fake", "--new-labels", "1", "--out", str(tmp_path)]) == 0
        assert run[1][2].path == str(tmp_path / "cache" / "fake.npz")
        assert len(recipe) == 1

    @pytest.mark.usefixtures("recipe")
    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (RecipeError("no apt here"), "error: no apt here\n"),
            (StorageError("no feature set"), "error: no feature set\n"),
            (OSError(28, "No space left on device"), "cache: No space left on device\n"),
            (OSError("no weights"), "cache: no weights\n"),
        ],
    )
    def test_a_recipe_that_fails_is_explained(self, error, message, run, tmp_path, monkeypatch, capsys):
        def fail(_):
            raise error

        monkeypatch.setitem(RECIPES, "fake", Recipe("a moment", {}, fail))
        assert main(["experiment", "updating", "--data", "fake", "--out", str(tmp_path / "out")]) == 1
        assert capsys.readouterr().err.endswith(message)
        assert not run
        assert not (tmp_path / "out").exists()

    @pytest.mark.usefixtures("recipe", "run")
    def test_an_interrupted_recipe_leaves_nothing(self, tmp_path, monkeypatch, capsys):
        def interrupt(_):
            raise KeyboardInterrupt

        monkeypatch.setitem(RECIPES, "fake", Recipe("a moment", {}, interrupt))
        assert main(["experiment", "updating", "--data", "fake", "--out", str(tmp_path)]) == 130
        assert capsys.readouterr().err.endswith("lapal-ext: interrupted\n")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_help_names_all_recipes(self, capsys):
        with pytest.raises(SystemExit):
            main(["experiment", "updating", "--help"])
        assert f"at its first use: {', '.join(RECIPES)}" in " ".join(capsys.readouterr().out.split())

    def test_a_damaged_file_is_named(self, run, tmp_path, capsys):
        (tmp_path / "set.npz").write_bytes(b"PK")
        assert main(["experiment", "updating", "--data", str(tmp_path / "set.npz"), "--out", str(tmp_path)]) == 1
        assert "set.npz is no feature set" in capsys.readouterr().err
        assert not run

    def test_a_folder_with_another_experiment_is_refused(self, tmp_path, capsys):
        arguments = ["experiment", "updating", "--data", "digits", "--out", str(tmp_path), "--arms", "base"]
        assert main([*arguments, "--seeds", "1"]) == 0
        assert main([*arguments, "--seeds", "2"]) == 1
        assert "holds another experiment: seeds was 1 and is 2" in capsys.readouterr().err

    def test_an_experiment_must_be_named(self, capsys):
        with pytest.raises(SystemExit) as end:
            main(["experiment"])
        assert end.value.code == 2
        assert "name an experiment: updating, active-learning, look-ahead" in capsys.readouterr().err

    @pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "rich", "torchmetrics"])
    def test_missing_extra_is_named(self, missing, run, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, missing, None)
        assert main(["experiment", "updating", "--data", "digits", "--out", str(tmp_path)]) == 1
        assert 'rich and torchmetrics: pip install "lapal_ext[experiment]"' in capsys.readouterr().err
        assert not run

    @pytest.mark.parametrize("every", ["-1", "1.5", "never"])
    def test_batches_between_refits_are_counted(self, every, run, tmp_path, capsys):
        arguments = ["experiment", "active-learning", "--data", "digits", "--out", str(tmp_path)]
        with pytest.raises(SystemExit) as end:
            main([*arguments, "--refit-every", every])
        assert end.value.code == 2
        assert "argument --refit-every: must be a whole number of at least 0" in capsys.readouterr().err
        assert not run

    def test_rules_have_no_arms_without_refits(self, run, tmp_path, capsys):
        arguments = ["experiment", "updating", "--data", "digits", "--out", str(tmp_path)]
        assert main([*arguments, "--arms", "line_search_updated"]) == 1
        assert "refit, got line_search_updated" in capsys.readouterr().err
        assert not run

    def test_a_dead_process_is_explained(self, tmp_path, monkeypatch, capsys):
        def die(*_):
            raise BrokenProcessPool

        monkeypatch.setattr("lapal_ext.study.experiment.run_experiment", die)
        assert main(["experiment", "updating", "--data", "digits", "--out", str(tmp_path)]) == 1
        assert "run the same command again" in capsys.readouterr().err

    @pytest.mark.parametrize("jobs", ["1", "2"])
    def test_a_prior_precision_that_a_fit_refuses_is_named(self, jobs, tmp_path, capsys):
        arguments = ["experiment", "active-learning", "--data", "digits", "--out", str(tmp_path), "--arms", "margin"]
        assert main([*arguments, "--seeds", "2", "--jobs", jobs, "--prior-precisions", "1e-300"]) == 1
        assert capsys.readouterr().err == (
            "error: prior_precision must lie in [1.2e-38, 8.5e+37], where it has an inverse in torch.float32, "
            "got 1e-300\n"
        )

    def test_an_unfinished_experiment_has_no_report(self, tmp_path, capsys):
        assert main(["report", str(tmp_path)]) == 1
        assert "holds no finished experiment" in capsys.readouterr().err
        assert main(["report", str(tmp_path / "none")]) == 1
        assert "DIR must be the folder of an experiment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("the disk is gone"), "the disk is gone"),
        (PermissionError(13, "Permission denied", "x.npy"), "cannot read or write x.npy: Permission denied"),
        (OSError(), "OSError"),
    ],
)
def test_errors_of_files_are_explained(error, message):
    with pytest.raises(CommandError) as raised, explained():
        raise error
    assert str(raised.value) == message


@pytest.mark.skipif(sys.platform != "linux", reason="closes a pipe early")
def test_a_closed_pipe_gives_no_traceback():
    command = f"{sys.executable} -c 'from lapal_ext.cli import main; main([\"doctor\"])' | true"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, check=True)
    assert not done.stderr


_UNREAD = "| true"
_FULL = "error: cannot write to standard output: No space left on device\n"


@pytest.mark.skipif(sys.platform != "linux", reason="closes streams, and fills a disk that is always full")
@pytest.mark.parametrize(
    ("command", "status", "errors"),
    [
        ("select >&-", 0, ""),
        ("select | true", 141, ""),
        ("select > /dev/full", 1, _FULL),
        ("select --interactive <&-", 0, ""),
        ("select --interactive < /dev/null | true", 141, ""),
        ("select <&- >&- 2>&-", 0, ""),
        ("select --acquisition luck 2>&-", 1, ""),
        ("select --acquisition luck 2> /dev/full", 1, ""),
        ("doctor >&-", 0, ""),
        ("doctor > /dev/full", 1, _FULL),
        ("--help | true", 141, ""),
        ("--help > /dev/full", 1, _FULL),
    ],
)
def test_streams_that_are_closed_or_full(command, status, errors, tmp_path):
    np.save(tmp_path / "pool.npy", np.eye(6, dtype=np.float32))
    name, *rest = command.split(" ", 1)
    options = "--pool pool.npy --classes 2 --out out.csv" if name == "select" else ""
    line = f"{sys.executable} -m lapal_ext {name} {options} {' '.join(rest)}".removesuffix(_UNREAD)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    reader, writer = os.pipe()
    os.close(reader)  # before the command begins: a reader that ends by itself may do so too late
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env=environment,
        stdout=writer if command.endswith(_UNREAD) else None,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (status, errors)
    is_written = name == "select" and "luck" not in command and "--interactive" not in command
    assert (tmp_path / "out.csv").exists() == is_written


def test_an_error_of_standard_output_is_not_that_of_a_file(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", full := Full())
    monkeypatch.setattr("lapal_ext.cli.doctor.report", lambda: ["a line"])
    assert main(["doctor"]) == 1
    assert sys.stdout is full
    assert capsys.readouterr().err == _FULL
