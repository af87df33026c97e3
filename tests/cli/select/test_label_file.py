"""The label file: what the command writes, and what it reads after an editor or a spreadsheet has changed it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.cli import main
from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select.answers import Line
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.label_file import LabelFile
from lapal_ext.posterior.calibration import fit_temperature
from tests.cli.select.problem import CLASSES, FEATURES, NAMES, ROWS, fill, fitted, lines, select


class TestLabelFile:
    def test_picks_are_those_of_select_batch(self, data, capsys):
        pool, features, _ = data
        assert select("--number", 5) == 0
        expected = select_batch(fitted(data), pool, 5, "uherding", labelled=features)
        assert [int(line["row"]) for line in lines()] == expected.indices.tolist()
        assert [float(line["utility"]) for line in lines()] == pytest.approx(expected.utilities.tolist(), rel=1e-5)
        assert {line["label"] for line in lines()} == {""}
        assert "Answers: 0. Rows chosen: 5. Fill in their labels in out.csv." in capsys.readouterr().out

    def test_lines_end_with_a_newline_alone(self, data):  # noqa: ARG002 the fixture writes the files
        assert select("--number", 2) == 0
        assert Path("out.csv").read_bytes().count(b"\n") == 3
        assert b"\r" not in Path("out.csv").read_bytes()

    def test_a_file_keeps_its_line_ends(self, data):  # noqa: ARG002 the fixture writes the files
        Path("out.csv").write_bytes(b'row,label,note\r\n7,bee,"two\nlines"\r\n3,,\r\n')
        assert select("--number", 1, "--more") == 0
        content = Path("out.csv").read_bytes()
        assert content.startswith(b'row,label,note,utility\r\n7,bee,"two\nlines",\r\n3,,,\r\n')
        assert content.count(b"\r\n") == content.count(b"\n") - 1 == content.count(b"\r") == 4

    def test_answers_are_absorbed_and_the_rest_stays(self, data, capsys):
        pool, features, _ = data
        select("--number", 4)
        first = [int(line["row"]) for line in lines()]
        fill("bee", "2", "skip")
        assert select("--number", 3, "--more") == 0
        table = lines()
        assert [int(line["row"]) for line in table[:4]] == first
        assert [line["label"] for line in table] == ["bee", "cat", "skip", "", "", "", ""]
        told = fitted(data).update(pool[first[:2]].float(), torch.tensor([1, 2]))
        waiting = pool[first[3:]].float()
        told.update(waiting, told.predict_logits(waiting).argmax(1))
        known = torch.cat([features, pool[first]])
        expected = select_batch(told, pool, 3, "uherding", exclude=torch.tensor(first), labelled=known)
        assert [int(line["row"]) for line in table[4:]] == expected.indices.tolist()
        out = capsys.readouterr().out
        assert "Answers: 2. Rows chosen: 3." in out
        assert "Rows of the file that still wait for a label: 1." in out

    def test_further_columns_and_a_byte_order_mark_survive(self):
        Path("out.csv").write_text("\ufeffnote,row,label\nlook again,7,bee\n,3,\n", encoding="utf-8")
        assert select("--number", 1, "--more") == 0
        table = lines()
        assert [line["note"] for line in table] == ["look again", "", ""]
        assert [line["row"] for line in table[:2]] == ["7", "3"]

    def test_no_row_is_chosen_twice_until_the_pool_is_empty(self, capsys):
        for _ in range(4):
            assert select("--number", ROWS // 4, "--more") == 0
        assert sorted(int(line["row"]) for line in lines()) == list(range(ROWS))
        before = Path("out.csv").read_bytes()
        capsys.readouterr()
        assert select("--number", 1, "--more") == 0
        assert f"Rows of out.csv that still wait for a label: {ROWS}." in capsys.readouterr().out
        assert Path("out.csv").read_bytes() == before

    def test_a_number_beyond_the_pool_adds_all_rows_that_are_left(self):
        assert select("--number", ROWS - 3) == 0
        assert select("--number", 10, "--more") == 0
        assert len(lines()) == ROWS

    @pytest.mark.parametrize("acquisition", ["margin", "coreset"])
    def test_unlabelled_rows_count_as_picked(self, acquisition):
        pool = np.load("pool.npy")[:15]
        np.save("pool.npy", np.concatenate([pool, pool]))
        for _ in range(2):
            assert select("--number", 4, "--acquisition", acquisition, "--more") == 0
        twice = [line["row"] for line in lines()]
        Path("out.csv").unlink()
        assert select("--number", 8, "--acquisition", acquisition) == 0
        assert [line["row"] for line in lines()] == twice

    @pytest.mark.parametrize("acquisition", ["random", "badge", "coreset"])
    def test_the_seed_decides_the_rows_of_random_acquisitions(self, acquisition):
        picks = []
        for seed in (0, 0, 1):
            Path("out.csv").unlink(missing_ok=True)
            assert select("--number", 5, "--acquisition", acquisition, "--seed", seed) == 0
            picks.append([line["row"] for line in lines()])
        assert picks[0] == picks[1]
        assert (picks[0] == picks[2]) == (acquisition == "coreset")

    def test_a_trained_head_is_updated_and_has_no_temperature(self, data, capsys):
        pool, features, _ = data
        head = torch.nn.Linear(FEATURES, CLASSES)
        save_file({"weight": head.weight.detach(), "bias": head.bias.detach()}, "head.safetensors")
        options = ["--number", 5, "--head", "head.safetensors", "--save", "model"]
        assert select(*options[:2], "--save", "model") == 0
        assert Path("model.temperature.json").exists()
        Path("out.csv").unlink()
        assert select(*options) == 0
        posterior = LastLayerLaplace.from_linear(head, features, 10.0, standardize=True)
        assert [int(line["row"]) for line in lines()] == [
            *select_batch(posterior, pool, 5, "uherding", labelled=features).indices.tolist()
        ]
        fill("ant", "cat")
        assert select(*options) == 0
        rows = [int(line["row"]) for line in lines()[:2]]
        expected = posterior.condition_on(pool[rows], torch.tensor([0, 2]))
        assert LastLayerLaplace.load("model").mean.equal(expected.mean)
        assert not Path("model.temperature.json").exists()
        assert main(["predict", "--model", "model", "--pool", "pool.npy", "--out", "labels.csv"]) == 0
        assert "not calibrated" in capsys.readouterr().out
        fill("dog")
        assert select(*options, "--new-classes") == 0
        assert LastLayerLaplace.load("model").class_names == (*NAMES, "dog")


class TestEditedFiles:
    @pytest.mark.parametrize(
        "content",
        [
            "row;label;note\n7;bee;a, b\n3;;\n",
            "row\tlabel\tnote\n7\tbee\ta, b\n3\t\t\n",
            '\ufeffrow,label,note\r\n7,bee,"a, b"\r\n3,,\r\n,,\r\n',
            'note,label,row\n"a, b",1.0,7\n,,3\n',
        ],
    )
    def test_dialects_of_spreadsheets_are_read_and_kept(self, content):
        Path("out.csv").write_bytes(content.encode())
        for number in (1, 2):  # what was written is read again
            assert select("--number", 1, "--more") == 0
            file = LabelFile(Path("out.csv"), ROWS, Classes(NAMES))
            assert len(file.lines) == 2 + number
            assert file.lines[0] == Line(7, "", 1, False, {"note": "a, b"})
            assert file.lines[1].waits
        heading = content.splitlines()[0]
        assert Path("out.csv").read_text(encoding="utf-8").startswith(heading)

    def test_a_carriage_return_within_a_cell_becomes_a_newline(self):
        Path("out.csv").write_bytes(b'row,label,note\n1,ant,"a\rb"\n')
        for _ in range(2):
            assert select("--number", 1, "--more") == 0
        assert LabelFile(Path("out.csv"), ROWS, Classes(NAMES)).lines[0].others == {"note": "a\nb"}

    def test_skip_may_have_capitals(self):
        Path("out.csv").write_text("row,label\n1,Skip\n")
        assert select("--number", 1) == 0
        assert lines()[0]["label"] == "skip"

    def test_a_file_that_another_program_has_changed_is_not_overwritten(self):
        select("--number", 2)
        file = LabelFile(Path("out.csv"), ROWS, Classes(NAMES))
        fill("ant")
        changed = Path("out.csv").read_text()
        with pytest.raises(CommandError, match=r"out\.csv was changed by another program meanwhile"):
            file.write(file.lines[:1])
        assert Path("out.csv").read_text() == changed

    def test_symbolic_links_and_permissions_are_kept(self):
        Path("real.csv").write_text("row,label\n1,ant\n")
        Path("real.csv").chmod(0o600)
        Path("out.csv").symlink_to("real.csv")
        assert select("--number", 1) == 0
        assert Path("out.csv").is_symlink()
        assert len(Path("real.csv").read_text().splitlines()) == 3
        assert Path("real.csv").stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize(
        ("pool", "features"), [("float64", "float32"), ("float32", "float64"), ("float16", "float64")]
    )
    def test_dtypes_may_differ(self, pool, features):
        np.save("pool.npy", np.load("pool.npy").astype(pool))
        np.save("train.npy", np.load("train.npy").astype(features))
        assert select("--number", 1) == 0

    def test_texts_are_written_beside_their_rows(self):
        assert select("--number", 4, "--texts", "texts.txt") == 0
        assert [line["text"] for line in lines()] == [f"text of row {line['row']}" for line in lines()]
        fill("ant", "skip")
        assert select("--number", 2, "--more") == 0  # the column stays, and is empty for new rows
        assert [bool(line["text"]) for line in lines()] == [True] * 4 + [False] * 2

    @pytest.mark.parametrize("mode", [[], ["--interactive"]])
    @pytest.mark.parametrize("count", [2, ROWS + 1])
    def test_a_wrong_number_of_texts_is_an_error(self, count, mode, capsys):
        Path("texts.txt").write_text("text\n" * count)
        assert select("--texts", "texts.txt", *mode) == 1
        message = f"--texts must have one line for each of the {ROWS} rows of the pool, got {count}"
        assert message in capsys.readouterr().err

    def test_save_writes_the_model_fitted_to_all_labels(self, data):
        pool, features, targets = data
        assert select("--number", 4) == 0
        fill("ant", "BEE", "skip")
        told = [line for line in lines() if line["label"] not in ("", "skip")]
        assert select("--number", 1, "--save", "model.safetensors") == 0
        new = pool[[int(line["row"]) for line in told]].float()
        every = torch.cat([features, new]), torch.cat([targets, torch.tensor([0, 1])])
        saved = LastLayerLaplace.load("model.safetensors")
        assert saved.mean.equal(LastLayerLaplace.fit_map(*every, CLASSES).mean)
        assert saved.fitted_rows == len(every[0])
        temperature = fit_temperature(LastLayerLaplace.untrained(features, CLASSES), *every)
        assert json.loads(Path("model.safetensors.temperature.json").read_bytes())["temperature"] == temperature
        assert temperature != 1.0

    def test_class_names_may_differ_by_capitals_alone(self):
        Path("names.txt").write_text("Ant\nant\ncat\n")
        assert select("--number", 3) == 0
        fill("ant", "CAT")
        assert select("--number", 1) == 0
        assert [line["label"] for line in lines()][:2] == ["ant", "cat"]
        fill("ANT")
        assert select("--number", 1) == 1  # it might be either


@pytest.mark.usefixtures("data")
class TestOtherFiles:
    """Nothing that the command reads, and no answer, is overwritten."""

    @pytest.mark.parametrize("option", ["--save", "--picture"])
    @pytest.mark.parametrize(
        "path",
        [
            "pool.npy",
            "train.npy",
            "labels.npy",
            "names.txt",
            "texts.txt",
            "out.csv",
            "older.csv",
            "older.csv.pool.json",
        ],
    )
    def test_a_file_of_the_command_is_not_written(self, option, path, capsys):
        Path("older.csv.pool.json").write_text("{}")
        Path("older.csv").write_text("row,label\n")
        assert select() == 0
        before = Path(path).read_bytes()
        assert select("--texts", "texts.txt", option, path) == 1
        error = rf"{option} must (be another file than --|not be a label file).*{path}"
        assert re.search(error, capsys.readouterr().err)
        assert Path(path).read_bytes() == before

    @pytest.mark.parametrize("name", ["part.npy", "model.safetensors"])
    def test_nothing_is_written_into_a_folder_that_is_read_whole(self, name, capsys):
        Path("parts").mkdir()
        Path("pool.npy").rename("parts/part.npy")
        assert select("--pool", "parts", "--save", f"parts/{name}") == 1
        assert "--save must not lie in the folder of --pool, which is read whole" in capsys.readouterr().err
        assert select("--pool", "parts", "--save", "parts") == 1
        assert "--save must be a file, got the folder parts" in capsys.readouterr().err
        assert select("--pool", "parts", "--out", "parts/out.csv") == 0

    @pytest.mark.parametrize("path", ["model", "pool.npy", "items.csv", "out.csv"])
    def test_predict_writes_none_of_its_inputs_and_no_label_file(self, path, capsys):
        Path("items.csv").write_text("id,text\n" + "".join(f"{row},a\n" for row in range(ROWS)))
        assert select("--save", "model") == 0
        before = Path(path).read_bytes()
        options = ["--model", "model", "--pool", "pool.npy", "--items", "items.csv", "--out", path]
        assert main(["predict", *options]) == 1
        assert "--out must" in capsys.readouterr().err
        assert Path(path).read_bytes() == before

    def test_a_file_that_is_saved_just_before_it_is_replaced_stays(self, monkeypatch, capsys):
        assert select("--number", 2) == 0
        changed = b"row,label\n5,ant\n"
        copymode = shutil.copymode

        def save_first(path, scratch):  # the last step before the rename
            if path.name == "out.csv":
                path.write_bytes(changed)
            copymode(path, scratch)

        monkeypatch.setattr(shutil, "copymode", save_first)
        assert select("--number", 2, "--more") == 1
        assert "out.csv was changed by another program meanwhile" in capsys.readouterr().err
        assert Path("out.csv").read_bytes() == changed
