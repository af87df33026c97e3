"""From items to features, and from a model to the class of every row."""

import csv
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.cli import main
from lapal_ext.cli.saved_model import save_model

ENCODER = """
import torch

class Counting(torch.nn.Module):
    seen = 0
    stop_at = None

    def forward(self, batch):
        if Counting.seen == Counting.stop_at:
            raise KeyboardInterrupt
        Counting.seen += 1
        return batch

def lengths():
    return Counting(), lambda items: torch.tensor([[float(len(item)), float(item.count("a"))] for item in items])
"""


def read(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestExtract:
    @pytest.fixture(autouse=True)
    def workplace(self, tmp_path, monkeypatch, request):
        self.module = f"encoder_{abs(hash(request.node.name))}"  # imported once per process
        (tmp_path / f"{self.module}.py").write_text(ENCODER)
        monkeypatch.chdir(tmp_path)
        Path("items.csv").write_text("id,text,page\n" + "".join(f"n{row},{'ab' * row},{row}\n" for row in range(1, 8)))

    def extract(self, items: str = "items.csv", *options: str) -> int:
        model = f"{self.module}:lengths"
        return main(["extract", "--model", model, "--items", items, "--out", "x.npy", "--batch-size", "2", *options])

    def test_features_and_items_have_one_order(self, capsys):
        assert self.extract() == 0
        assert np.load("x.npy").tolist() == [[2.0 * row, float(row)] for row in range(1, 8)]
        assert read("x.npy.items.csv") == read("items.csv")
        assert "lapal-ext select --pool x.npy --items x.npy.items.csv --out to_label.csv" in capsys.readouterr().out
        assert main(["select", "--pool", "x.npy", "--items", "x.npy.items.csv", "--out", "o.csv", "--number", "2"]) == 0
        assert {line["id"] for line in read("o.csv")} <= {f"n{row}" for row in range(1, 8)}

    def test_an_interrupted_run_goes_on(self, monkeypatch):
        monkeypatch.syspath_prepend(str(Path.cwd()))
        counting = importlib.import_module(self.module).Counting
        counting.stop_at = 2
        assert self.extract() == 130
        assert not Path("x.npy").exists()
        counting.stop_at = None
        assert self.extract() == 0
        assert counting.seen == 4  # of four batches, the first two are not encoded again
        assert np.load("x.npy")[:, 1].tolist() == list(range(1, 8))

    def test_other_items_for_the_same_file_are_an_error(self, capsys):
        assert self.extract() == 0
        Path("items.csv").write_text("id,text\nn1,other\n")
        assert self.extract() == 1
        assert "x.npy was begun with other items, or in another order" in capsys.readouterr().err

    def test_another_encoder_for_the_same_file_is_an_error(self, capsys):
        assert self.extract() == 0
        before = Path("x.npy").read_bytes()
        prepare = importlib.import_module(self.module)
        lengths = prepare.lengths
        prepare.others = lengths  # the same inputs under another name
        assert self.extract("items.csv", "--model", f"{self.module}:others") == 1
        prepare.lengths = lambda: (lengths()[0], lambda items: 2.0 * lengths()[1](items))  # an edited function
        assert self.extract() == 1
        assert capsys.readouterr().err.count("x.npy was begun with another encoder, or other inputs for it") == 2
        prepare.lengths = lengths
        assert self.extract() == 0
        assert Path("x.npy").read_bytes() == before

    @pytest.mark.parametrize("as_table", [False, True])
    def test_another_file_of_the_same_name_is_another_item(self, as_table, capsys):
        Path("folder").mkdir()
        names = [f"{row:02}.png" for row in range(40)]
        for name in names:
            Path("folder", name).write_bytes(b"abc")
        rows = "".join(f"{name},folder/{name}\n" for name in names)
        Path("paths.csv").write_text(f"id,path\n{rows}")
        items = "paths.csv" if as_table else "folder"
        assert self.extract(items) == 0
        assert self.extract(items) == 0
        before = Path("x.npy").read_bytes()
        Path("folder", "39.png").write_bytes(b"abcd")
        assert self.extract(items) == 1
        assert "x.npy was begun with other items: the file of '39.png' had 3 bytes, and has 4" in (
            capsys.readouterr().err
        )
        origin = Path("x.npy.encoder.json")
        older = json.loads(origin.read_text())
        assert older.pop("sizes") == [3] * 40
        origin.write_text(json.dumps(older, indent=1) + "\n")  # as older versions wrote it
        assert self.extract(items) == 0
        assert json.loads(origin.read_text())["sizes"] == [*[3] * 39, 4]
        assert Path("x.npy").read_bytes() == before
        origin.write_text("[]")
        assert self.extract(items) == 1
        assert "x.npy was begun with another encoder" in capsys.readouterr().err

    def test_an_encoder_may_import_from_the_current_folder_later(self, monkeypatch):
        monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
        Path(f"late_{self.module}.py").touch()
        file = Path(f"{self.module}.py")
        text = f"lambda items: __import__('late_{self.module}') and torch.tensor("
        file.write_text(file.read_text().replace("lambda items: torch.tensor(", text))
        assert self.extract() == 0
        assert "" not in sys.path

    def test_a_file_of_another_program_is_left_alone(self, capsys):
        Path("x.npy").write_text("other")
        assert self.extract() == 1
        assert "x.npy exists, and this command has not written it" in capsys.readouterr().err
        assert [path.name for path in Path().glob("x.npy*")] == ["x.npy"]

    @pytest.mark.parametrize("suffix", ["txt", "png"])
    def test_a_folder_gives_its_files_in_order(self, suffix):
        for name in ("b", "a/c", ".hidden", "a/b"):
            path = Path("folder", f"{name}.{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("aa\n" if name == "b" else "a")
        assert self.extract("folder") == 0
        ids = [f"{name}.{suffix}" for name in ("a/b", "a/c", "b")]
        column, values = ("text", ["a", "a", "aa"]) if suffix == "txt" else ("path", [f"folder/{name}" for name in ids])
        assert read("x.npy.items.csv") == [{"id": i, column: v} for i, v in zip(ids, values, strict=True)]
        assert np.load("x.npy")[:, 0].tolist() == list(map(len, values))

    def test_paths_count_from_their_table_too(self):
        Path("folder").mkdir()
        Path("folder/one.png").touch()
        Path("folder/items.csv").write_text("id,path\nx,one.png\n")
        assert self.extract("folder/items.csv") == 0
        assert np.load("x.npy")[0, 0] == len("folder/one.png")

    @pytest.mark.parametrize(
        ("items", "content", "message"),
        [
            ("t.csv", "id,text\n", "t.csv must have a line for each item below its first one, got none"),
            ("t.csv", "id,title\na,b\n", "t.csv, line 1: must have a column called text or path"),
            ("t.csv", "id,path\na,no.png\n", "item 'a' must have the path of a file, got 'no.png'"),
            ("t.csv", "id,text\na,b\na,c\n", "t.csv, lines 2 and 3: both rows have the id 'a'"),
            ("t.csv", "id,text,label\na,b,c\n", "t.csv, line 1: must not have a column called 'label'"),
            ("none.csv", None, "--items must be a CSV file, got none.csv"),
        ],
    )
    def test_items_that_are_not_understood(self, items, content, message, capsys):
        if content is not None:
            Path(items).write_text(content)
        assert self.extract(items) == 1
        assert message in capsys.readouterr().err


class TestPredict:
    @pytest.fixture(autouse=True)
    def workplace(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        generator = torch.Generator().manual_seed(0)
        self.pool = torch.randn(50, 4, generator=generator)
        self.model = LastLayerLaplace.fit_map(self.pool, torch.arange(50) % 3, 3, class_names=["ant", "bee", "é,t"])
        self.model.save("m")
        np.save("pool.npy", self.pool.half().numpy())
        Path("items.csv").write_text("id,text\n" + "".join(f'n{row},"t,{row}"\n' for row in range(50)))

    @staticmethod
    def predict(*options: str) -> int:
        return main(["predict", "--model", "m", "--pool", "pool.npy", "--out", "labels.csv", *options])

    def test_every_row_has_its_class(self):
        assert self.predict("--items", "items.csv") == 0
        best = self.model.predict_proba(self.pool.half(), "plugin").topk(2, dim=1)
        for row, line in enumerate(read("labels.csv")):
            first, second = (self.model.class_names[number] for number in best.indices[row].tolist())
            expected = {"row": str(row), "id": f"n{row}", "class": first, "second_class": second, "text": f"t,{row}"}
            assert line == {**expected, "probability": f"{best.values[row, 0]:.4f}"}
        assert row == 49

    def test_the_temperature_of_the_model_is_used_and_no_other(self, capsys):
        save_model(self.model, 0.5, Path("m"))
        assert self.predict() == 0
        sharp = (2.0 * self.model.predict_logits(self.pool.half())).softmax(1).amax(1)
        assert [float(line["probability"]) for line in read("labels.csv")] == pytest.approx(sharp.tolist(), abs=1e-4)
        assert "calibrated" not in capsys.readouterr().out
        self.model.add_class("dog").save("m")  # as if the process was killed before the temperature was written
        assert self.predict() == 0
        plain = self.model.predict_proba(self.pool.half(), "plugin").amax(1)
        assert [float(line["probability"]) for line in read("labels.csv")] == pytest.approx(plain.tolist(), abs=1e-4)
        assert "not calibrated: lapal-ext select --save does that, without --head" in capsys.readouterr().out

    @pytest.mark.parametrize("change", [lambda x: 0.3 * x, lambda x: 4.0 * x, lambda x: x + 3.0])
    def test_features_of_another_encoder_are_warned_of(self, change, capsys):
        np.save("pool.npy", change(self.pool).numpy())
        assert self.predict() == 0
        assert "as those that it was made for: if another encoder made them" in capsys.readouterr().err
        assert len(read("labels.csv")) == 50

    @pytest.mark.parametrize("rows", ["one class", "few", "one", "wrong"])
    def test_a_part_of_the_pool_is_not_warned_of(self, rows, capsys):
        """Nor are rows that are too few to tell; a wrong width has its own error."""
        classes = self.model.predict_logits(self.pool).argmax(1)
        part = {
            "one class": self.pool[classes == classes.mode().values],
            "few": self.pool[20:32],
            "one": 9.0 * self.pool[:1],
            "wrong": self.pool[:, :3],
        }[rows]
        np.save("pool.npy", part.numpy())
        assert self.predict() == (1 if rows == "wrong" else 0)
        assert "encoder" not in capsys.readouterr().err

    def test_the_file_is_replaced_as_a_whole(self, monkeypatch):
        assert self.predict() == 0
        before = Path("labels.csv").read_bytes()

        def tiles(*arguments, **options):
            yield from list(top_classes(*arguments, **options))
            raise KeyboardInterrupt

        from lapal_ext.pool import top_classes as module

        top_classes = module.top_classes
        monkeypatch.setattr(module, "top_classes", tiles)
        assert self.predict("--items", "items.csv") == 130
        assert Path("labels.csv").read_bytes() == before
        assert not list(Path().glob(".*labels.csv"))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--model", "none"], "--model must be an existing file, got none"),
            (["--model", "pool.npy"], "pool.npy is damaged or no safetensors file"),
            (["--pool", "none.npy"], "--pool must be an existing file, got none.npy"),
            (
                ["--items", "class.csv", "--pool", "none.npy"],
                "class.csv, line 1: must not have a column called 'class': give it another name",
            ),
            (["--out", "x.xlsx"], "--out must be a .csv file, got x.xlsx: type --out x.csv"),
            (["--out", "no/x.csv"], "--out must lie in an existing folder, got no/x.csv"),
            (
                ["--ids", "items.csv"],
                "--ids must have one line for each of the 50 rows of the pool, got 51 in items.csv",
            ),
        ],
    )
    def test_errors(self, options, message, capsys):
        Path("class.csv").write_text("id,class\na,b\n")
        assert self.predict(*options) == 1
        assert message in capsys.readouterr().err
        assert not list(Path().glob("*labels.csv"))
