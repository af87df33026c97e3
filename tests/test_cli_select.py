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
    with Path("out.csv").open(newline="") as file:
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
        assert "Absorbed 0 answers and chose 5 rows: fill in their labels in out.csv." in capsys.readouterr().out

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
        expected = select_batch(told, pool, 3, exclude=torch.tensor(first))
        assert [int(line["row"]) for line in table[4:]] == expected.indices.tolist()
        out = capsys.readouterr().out
        assert "Absorbed 2 answers and chose 3 rows" in out
        assert "1 rows of the file still waited for theirs." in out

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
        assert "--number must be at most 0, the rows of the pool that are left, got 1" in capsys.readouterr().err

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
        assert "6 labels in out.csv." in capsys.readouterr().out

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
            ("index,label\n1,ant\n", "must have the columns row and label, row is missing"),
            ("", "row and label is missing"),
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
            (("--labels", "names.txt"), "names.txt is damaged, or no .npy file"),
            (("--classes", "two"), "--classes must be a number or a file of names, got 'two'"),
            (("--classes", "2"), "targets must lie in [0, 2)"),
            (("--classes", "pool.npy"), "--classes must be a number or a file of names"),
            (("--acquisition", "luck"), "acquisition must be one of 'margin'"),
            (("--head", "nowhere.safetensors"), "--head must be a .safetensors file with weight and bias"),
            (("--number", ROWS + 1), f"--number must be at most {ROWS}"),
            (("--out", "nowhere/out.csv"), "cannot write nowhere/out.csv"),
        ],
    )
    def test_options(self, options, message, capsys):
        assert select(*options) == 1
        assert message in capsys.readouterr().err
        assert not Path("out.csv").exists()

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"weight": torch.zeros(4, FEATURES)}, "weight of 3 classes, one row each, got [4, 6]"),
            ({"bias": torch.zeros(3)}, "with weight and bias"),
            ({"weight": torch.zeros(3, FEATURES), "scale": torch.zeros(1)}, "weight and bias and nothing else"),
            ({"weight": torch.zeros(3, FEATURES + 1)}, "features must have shape"),
        ],
    )
    def test_heads(self, tensors, message, capsys):
        save_file(tensors, "head.safetensors")
        assert select("--head", "head.safetensors") == 1
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("names", ["ant\nant\nbee\n", "ant\nskip\nbee\n"])
    def test_names_that_cannot_be_told_apart(self, names, capsys):
        Path("names.txt").write_text(names)
        assert select() == 1
        assert "must hold distinct names, none of them" in capsys.readouterr().err


def test_names_may_be_those_of_the_commands_numbers(data):
    """A class called 2 is the class with that name, whatever its number."""
    Path("names.txt").write_text("2\n1\n0\n")
    assert select("--number", 1) == 0
    fill("2")
    assert select("--number", 1) == 0
    assert lines()[0]["label"] == "2"
    row = int(lines()[0]["row"])
    told = fitted(data).update(data[0][row : row + 1].float(), torch.tensor([0]))
    expected = select_batch(told, data[0], 1, exclude=torch.tensor([row]))
    assert int(lines()[1]["row"]) == int(expected.indices)
