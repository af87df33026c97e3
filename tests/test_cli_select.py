"""``lapal-ext select``: the label file goes round, questions resume where they stopped, and faults are explained."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lapal_ext import LastLayerLaplace, SequentialSelector, select_batch
from lapal_ext.cli import main
from lapal_ext.cli.answers import LabelFile, Line
from lapal_ext.cli.errors import CommandError

ROWS, LABELLED, FEATURES, CLASSES = 80, 30, 6, 3
NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """Files of a small problem, in the current folder."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(ROWS + LABELLED) % CLASSES
    features = torch.randn(len(targets), FEATURES, generator=generator)
    features[:, :CLASSES] += 2.0 * torch.nn.functional.one_hot(targets, CLASSES)
    features = features.half()
    np.save(tmp_path / "pool.npy", features[LABELLED:].numpy())
    np.save(tmp_path / "train.npy", features[:LABELLED].numpy())
    np.save(tmp_path / "labels.npy", targets[:LABELLED].numpy())
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "texts.txt").write_text("\n".join(f"text of row {row}" for row in range(ROWS)))
    monkeypatch.chdir(tmp_path)
    return features[LABELLED:], features[:LABELLED].float(), targets[:LABELLED]


def select(*options: object) -> int:
    common = "--pool pool.npy --features train.npy --labels labels.npy --out out.csv --classes names.txt"
    return main(["select", *common.split(), *map(str, options)])


def lines() -> list[dict[str, str]]:
    with Path("out.csv").open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def fill(*labels: str) -> None:
    """Answer the first rows of the file that wait."""
    given = iter(labels)
    table = lines()
    for line in table:
        if not line["label"]:
            line["label"] = next(given, "")
    with Path("out.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def fitted(data) -> LastLayerLaplace:
    _, features, targets = data
    return LastLayerLaplace.fit_map(features, targets, CLASSES)


class TestLabelFile:
    def test_picks_are_those_of_select_batch(self, data, capsys):
        pool, *_ = data
        assert select("--number", 5) == 0
        expected = select_batch(fitted(data), pool, 5)
        assert [int(line["row"]) for line in lines()] == expected.indices.tolist()
        assert [float(line["utility"]) for line in lines()] == pytest.approx(expected.utilities.tolist(), rel=1e-5)
        assert {line["label"] for line in lines()} == {""}
        assert "Answers absorbed: 0. Rows chosen: 5. Fill in their labels in out.csv." in capsys.readouterr().out

    def test_answers_are_absorbed_and_the_rest_stays(self, data, capsys):
        pool, *_ = data
        select("--number", 4)
        first = [int(line["row"]) for line in lines()]
        fill("bee", "2", "skip")
        assert select("--number", 3) == 0
        table = lines()
        assert [int(line["row"]) for line in table[:4]] == first
        assert [line["label"] for line in table] == ["bee", "cat", "skip", "", "", "", ""]
        told = fitted(data).update(pool[first[:2]].float(), torch.tensor([1, 2]))
        waiting = pool[first[3:]].float()
        told.update(waiting, told.predict_logits(waiting).argmax(1))
        expected = select_batch(told, pool, 3, exclude=torch.tensor(first))
        assert [int(line["row"]) for line in table[4:]] == expected.indices.tolist()
        out = capsys.readouterr().out
        assert "Answers absorbed: 2. Rows chosen: 3." in out
        assert "Rows of the file that still wait for a label: 1." in out

    def test_further_columns_and_a_byte_order_mark_survive(self):
        Path("out.csv").write_text("\ufeffnote,row,label\nlook again,7,bee\n,3,\n", encoding="utf-8")
        assert select("--number", 1) == 0
        table = lines()
        assert [line["note"] for line in table] == ["look again", "", ""]
        assert [line["row"] for line in table[:2]] == ["7", "3"]

    def test_no_row_is_chosen_twice_until_the_pool_is_empty(self, capsys):
        for _ in range(4):
            assert select("--number", ROWS // 4) == 0
        assert sorted(int(line["row"]) for line in lines()) == list(range(ROWS))
        assert select("--number", 1) == 1
        assert "every row of the pool is in out.csv already" in capsys.readouterr().err

    def test_the_last_rows_are_fewer(self):
        assert select("--number", ROWS - 3) == 0
        assert select("--number", 10) == 0
        assert len(lines()) == ROWS

    @pytest.mark.parametrize("acquisition", ["margin", "coreset"])
    def test_rows_that_wait_count_as_picked(self, acquisition):
        pool = np.load("pool.npy")[:15]
        np.save("pool.npy", np.concatenate([pool, pool]))
        for _ in range(2):
            assert select("--number", 4, "--acquisition", acquisition) == 0
        twice = [line["row"] for line in lines()]
        Path("out.csv").unlink()
        assert select("--number", 8, "--acquisition", acquisition) == 0
        assert [line["row"] for line in lines()] == twice

    @pytest.mark.parametrize("acquisition", ["random", "badge", "coreset"])
    def test_other_acquisitions_repeat_with_their_seed(self, acquisition):
        picks = []
        for seed in (0, 0, 1):
            Path("out.csv").unlink(missing_ok=True)
            assert select("--number", 5, "--acquisition", acquisition, "--seed", seed) == 0
            picks.append([line["row"] for line in lines()])
        assert picks[0] == picks[1]
        assert (picks[0] == picks[2]) == (acquisition == "coreset")

    def test_a_trained_head(self, data):
        pool, features, _ = data
        head = torch.nn.Linear(FEATURES, CLASSES)
        save_file({"weight": head.weight.detach(), "bias": head.bias.detach()}, "head.safetensors")
        assert select("--number", 5, "--head", "head.safetensors") == 0
        posterior = LastLayerLaplace.from_linear(head, features, 10.0, standardize=True)
        assert [int(line["row"]) for line in lines()] == select_batch(posterior, pool, 5).indices.tolist()


class TestInterview:
    @pytest.fixture
    def answer(self, monkeypatch):
        """Type these, and end the input."""

        def type_in(*texts: str) -> list[str]:
            questions: list[str] = []
            given = iter(texts)

            def read(question: str) -> str:
                questions.append(question)
                try:
                    return next(given)
                except StopIteration:
                    raise EOFError from None

            monkeypatch.setattr("builtins.input", read)
            assert select("--interactive", "--number", 6, "--texts", "texts.txt") == 0
            return questions

        return type_in

    def expected(self, data, labels) -> list[int]:
        """Rows that a selector asks for when it is told these labels, None for a skip."""
        selector = SequentialSelector(fitted(data), data[0])
        asked = []
        for label in labels:
            asked.append(row := int(selector.ask()))
            if label is None:
                selector.skip(row)
            else:
                selector.tell(row, label)
        return asked

    def test_every_answer_is_absorbed_before_the_next_question(self, data, answer):
        questions = answer("ant", "2", "skip", "1")
        rows = self.expected(data, [0, 2, None, 1])
        assert [(int(line["row"]), line["label"]) for line in lines()] == list(
            zip(rows, ["ant", "cat", "skip", "bee"], strict=True)
        )
        assert questions[0].startswith(f"[1/6] row {rows[0]}; the model says ")
        assert f"  text of row {rows[0]}\n" in questions[0]

    def test_it_goes_on_where_it_stopped(self, data, answer, capsys):
        answer("ant", "bee")
        answer("cat", "quit", "never read")
        rows = self.expected(data, [0, 1, 2])
        assert [int(line["row"]) for line in lines()] == rows
        assert "Going on from 2 answers in out.csv." in capsys.readouterr().out

    def test_undo_takes_back_also_what_an_earlier_run_was_told(self, data, answer):
        answer("ant", "bee")
        questions = answer("undo", "undo", "undo", "cat")
        rows = self.expected(data, [0, 1])
        assert f"row {rows[0]};" in questions[-2]
        table = {int(line["row"]): line["label"] for line in lines()}
        assert table == {rows[0]: "cat", rows[1]: ""}

    def test_what_is_no_label_is_asked_again(self, answer, capsys):
        answer("dog", "3", "-1", "", "bee")
        assert [line["label"] for line in lines()] == ["bee"]
        assert capsys.readouterr().out.count("A label is a number from 0 to 2 or a name (ant, bee, cat); or type") == 4

    def test_it_ends_with_the_number_asked_for(self, answer, capsys):
        assert len(answer(*["ant"] * 6)) == 6
        assert "6 answers in out.csv." in capsys.readouterr().out

    def test_rows_that_wait_stay_in_the_file_until_they_are_answered(self, answer):
        select("--number", 3)
        waiting = {line["row"] for line in lines()}
        answer("ant")
        table = lines()
        assert waiting <= {line["row"] for line in table}
        assert [line["label"] for line in table].count("ant") == 1

    @pytest.mark.skipif(sys.platform != "linux", reason="sends SIGINT and SIGKILL")
    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
    def test_nothing_is_lost_when_the_process_ends(self, stop, data):
        command = [sys.executable, "-m", "lapal_ext", "select", "--pool", "pool.npy", "--features", "train.npy"]
        command += ["--labels", "labels.npy", "--out", "out.csv", "--classes", "names.txt", "--interactive"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(b"ant\nbee\n")
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not (Path("out.csv").exists() and len(lines()) == 2) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)  # the third question
        process.send_signal(stop)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (0 if stop == signal.SIGINT else -signal.SIGKILL), err
        rows = self.expected(data, [0, 1])
        assert [(int(line["row"]), line["label"]) for line in lines()] == list(zip(rows, ["ant", "bee"], strict=True))
        assert not list(Path().glob(".*out.csv"))


class TestErrors:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                "row,label\n1,dog\n",
                "label must be a number from 0 to 2 or a name (ant, bee, cat), skip or nothing",
            ),
            ("row,label\n1,3\n", "line 2: label must be"),
            (f"row,label\n{ROWS},ant\n", f"line 2: row must be a whole number in [0, {ROWS}), got '{ROWS}'"),
            ("row,label\n1,ant\n1,bee\n", "line 3: row 1 stands there twice"),
            ("row,label\nx,ant\n", "line 2: row must be a whole number"),
            ("row,label\n1,ant,more\n", "line 2 has more cells"),
            ("index,label\n1,ant\n", "must have a column called row, got index, label"),
            ("", "must have a column called row"),
            ('row,label,note\n1,ant,"open\n2,bee,\n', "unexpected end of data"),
            ("row,label,label\n1,ant,bee\n", "columns of different names"),
            ("row,label,,\n1,ant,x,y\n", "columns of different names"),
            ("row,label\n1_0,ant\n", "line 2: row must be a whole number"),
            (f"row,label\n1,{'9' * 5000}\n", "line 2: label must be"),
        ],
    )
    def test_a_label_file_that_is_not_understood_stays_as_it_is(self, content, message, capsys):
        Path("out.csv").write_text(content)
        assert select() == 1
        assert message in capsys.readouterr().err
        assert Path("out.csv").read_text() == content

    def test_bytes_that_are_no_text(self, capsys):
        Path("out.csv").write_bytes(b"row,label\n1,\xff\xfe\n")
        assert select() == 1
        assert "no CSV file in UTF-8" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--pool", "nowhere.npy"), "--pool must be an existing file, got nowhere.npy"),
            (("--features", "nowhere.npy"), "--features must be an existing file"),
            (("--labels", "nowhere.npy"), "--labels must be an existing file"),
            (("--labels", "pool.npy"), "--labels must be a vector of integers, got float16 [80, 6]"),
            (("--labels", "several.npz"), "several.npz holds several arrays, as .npz files do"),
            (("--labels", "short.npy"), "--labels must hold one label for each of 30 features, got 29"),
            (("--labels", "huge.npy"), "--labels must be numbers of classes, below 1000000, got 4294967295"),
            (("--pool", "several.npy"), "several.npy holds several arrays"),
            (("--pool", "zip.npy"), "zip.npy holds several arrays"),
            (("--features", "integers.safetensors"), "integers.safetensors must hold float32, float64"),
            (("--classes", "99999999999999999999"), "--classes must be at most 1000000"),
            (("--labels", "names.txt"), "names.txt is damaged, or no .npy file"),
            (("--classes", "two"), "--classes must be a number or a file of names, got 'two'"),
            (("--classes", "2"), "targets must lie in [0, 2)"),
            (("--classes", "pool.npy"), "--classes must be a number or a file of names"),
            (("--acquisition", "luck"), "acquisition must be one of 'margin'"),
            (("--head", "nowhere.safetensors"), "--head must be a .safetensors file with weight and bias"),
            (("--out", "nowhere/out.csv"), "cannot write nowhere/out.csv"),
        ],
    )
    def test_options(self, options, message, capsys):
        np.savez("several.npz", a=np.zeros(2), b=np.zeros(2))
        Path("several.npy").write_bytes(Path("several.npz").read_bytes())
        Path("zip.npy").write_bytes(b"PK\x03\x04" + bytes(60))
        np.save("short.npy", np.zeros(LABELLED - 1, np.int64))
        np.save("huge.npy", np.full(LABELLED, 2**32 - 1, np.uint32))
        save_file({"features": torch.zeros(LABELLED, FEATURES, dtype=torch.int8)}, "integers.safetensors")
        assert select(*options) == 1
        assert message in capsys.readouterr().err
        assert not Path("out.csv").exists()

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"weight": torch.zeros(4, FEATURES)}, "weight of 3 rows, one for each of --classes, got [4, 6]"),
            ({"bias": torch.zeros(3)}, "with weight and bias"),
            (
                {"weight": torch.zeros(3, FEATURES), "scale": torch.zeros(1)},
                "and nothing else, got scale [1], weight [3, 6]",
            ),
            ({"weight": torch.zeros(3, FEATURES + 1)}, "features must have shape"),
            (
                {"weight": torch.zeros(3, FEATURES), "bias": torch.zeros(4)},
                "weight [C, D] and bias [C] and",
            ),
            ({"weight": torch.zeros(3, FEATURES, dtype=torch.int64)}, "floating point numbers, got torch.int64"),
        ],
    )
    def test_heads(self, tensors, message, capsys):
        save_file(tensors, "head.safetensors")
        assert select("--head", "head.safetensors") == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ("ant\nant\nbee\n", "must hold a different name for each class"),
            ("ant\nskip\nbee\n", "must not call a class 'skip', which means something else"),
            ("ant\nUndo\nbee\n", "must not call a class 'Undo'"),
            ("1\n2\n3\n", "must not call class 0 '1', the number of another"),
        ],
    )
    def test_names_that_cannot_be_told_apart(self, names, message, capsys):
        Path("names.txt").write_text(names)
        assert select() == 1
        assert message in capsys.readouterr().err


class TestOtherPeoplesFiles:
    @pytest.mark.parametrize(
        "content",
        [
            "row;label;note\n7;bee;a, b\n3;;\n",
            "row\tlabel\tnote\n7\tbee\ta, b\n3\t\t\n",
            '\ufeffrow,label,note\r\n7,bee,"a, b"\r\n3,,\r\n,,\r\n',
            'note,label,row\n"a, b",1.0,7\n,,3\n',
        ],
    )
    def test_spreadsheets_write_many_dialects(self, content):
        Path("out.csv").write_bytes(content.encode())
        for number in (1, 2):  # what was written is read again
            assert select("--number", 1) == 0
            file = LabelFile(Path("out.csv"), ROWS, NAMES)
            assert len(file.lines) == 2 + number
            assert file.lines[0] == Line(7, "", 1, False, {"note": "a, b"})
            assert file.lines[1].waits
        first = Path("out.csv").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(content.split("\r\n")[0].split("\n")[0][:3])

    def test_line_ends_within_a_cell(self):
        Path("out.csv").write_bytes(b'row,label,note\n1,ant,"a\rb"\n')
        for _ in range(2):
            assert select("--number", 1) == 0
        assert LabelFile(Path("out.csv"), ROWS, NAMES).lines[0].others == {"note": "a\nb"}

    def test_skip_in_capitals(self):
        Path("out.csv").write_text("row,label\n1,Skip\n")
        assert select("--number", 1) == 0
        assert lines()[0]["label"] == "skip"

    def test_a_file_that_somebody_else_has_changed_is_not_overwritten(self):
        select("--number", 2)
        file = LabelFile(Path("out.csv"), ROWS, NAMES)
        fill("ant")
        changed = Path("out.csv").read_text()
        with pytest.raises(CommandError, match=r"out\.csv was changed by somebody else meanwhile"):
            file.write(file.lines[:1])
        assert Path("out.csv").read_text() == changed

    def test_links_and_permissions_stay(self):
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
