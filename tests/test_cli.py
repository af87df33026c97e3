import subprocess
import sys

import pytest

from lapal_ext.cli import demo, main
from lapal_ext.study.run import Settings

_WHAT_IS_LOADED = """
import runpy, sys
sys.argv = ["lapal-ext"]
import lapal_ext
lazy = ("lapal_ext.study", "lapal_ext.cli", "sklearn", "matplotlib", "rich")
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


def test_no_command_prints_help_and_counts_as_wrong_usage(capsys):
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
    def shown(self, monkeypatch):
        """Calls of the study, which is not run."""
        calls = []
        monkeypatch.setattr(demo, "show_study", lambda *arguments: calls.append(arguments))
        return calls

    def test_options_reach_the_study(self, shown, tmp_path):
        folder = tmp_path / "new" / "results"
        assert main(["demo", "--out", str(folder), "--seeds", "3"]) == 0
        assert shown == [(folder, Settings(seeds=3))]
        assert list(folder.iterdir()) == []

    def test_default_is_enough_seeds_for_both_experiments(self, shown, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert main(["demo"]) == 0
        ((_, settings),) = shown
        assert settings.seeds >= 5

    @pytest.mark.parametrize("missing", ["sklearn", "matplotlib", "rich"])
    def test_missing_extra_is_named(self, missing, shown, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, missing, None)
        assert main(["demo", "--out", str(tmp_path)]) == 1
        message = 'lapal-ext demo needs scikit-learn, matplotlib and rich: pip install "lapal_ext[demo]"'
        assert message in capsys.readouterr().err
        assert not shown

    def test_a_file_is_no_folder(self, shown, tmp_path, capsys):
        file = tmp_path / "file"
        file.write_text("mine")
        assert main(["demo", "--out", str(file)]) == 1
        assert f"--out must be a folder, but {file} is a file" in capsys.readouterr().err
        assert main(["demo", "--out", str(file / "below")]) == 1
        assert "Not a directory" in capsys.readouterr().err
        assert file.read_text() == "mine"
        assert not shown

    def test_a_folder_one_cannot_write_to_is_refused_before_the_study(self, shown, tmp_path, monkeypatch, capsys):
        def refuse(**_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
        assert main(["demo", "--out", str(tmp_path)]) == 1
        assert f"got {tmp_path}: Permission denied" in capsys.readouterr().err
        assert not shown

    def test_interrupt_is_clean(self, tmp_path, monkeypatch, capsys):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("lapal_ext.study.run.run_study", interrupt)
        assert main(["demo", "--out", str(tmp_path)]) == 130
        assert capsys.readouterr().err == "lapal-ext: interrupted\n"
        assert list(tmp_path.iterdir()) == []

    def test_study_prints_tables_and_leaves_two_files(self, tmp_path, capsys):
        demo.show_study(tmp_path, Settings(seeds=2, new_labels=(1, 10, 50), acquisitions=1))
        out = capsys.readouterr().out
        assert sorted(file.name for file in tmp_path.iterdir()) == ["learning_curves.png", "results.csv"]
        for expected in ("Kernels:", "label before next pick", "upper bound: uses true labels", "AULC", "[ms]"):
            assert expected in out
        assert "\x1b" not in out
        assert str(tmp_path / "results.csv") in out.replace("\n", "")
