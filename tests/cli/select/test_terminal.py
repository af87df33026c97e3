"""Questions on the terminal, and runs that continue where an earlier one stopped."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lapal_ext import LastLayerLaplace, SequentialSelector
from lapal_ext.cli import main
from lapal_ext.cli.select import start
from lapal_ext.posterior.calibration import calibrate, fit_temperature
from tests.cli.select.problem import CLASSES, LABELLED, fitted, lines, select
from tests.fuzz.processes import HANGS


def type_answers(monkeypatch: pytest.MonkeyPatch, texts: tuple[str, ...]) -> list[str]:
    """Answer the coming questions with these texts, then with the end of the input; return the questions, as asked."""
    questions: list[str] = []
    given = iter(texts)

    def read(question: str) -> str:
        questions.append(question)
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    return questions


class TestInteractive:
    @pytest.fixture
    def answer(self, monkeypatch):
        """A function that runs the command with given answers, then the end of the input."""

        def type_in(*texts: str) -> list[str]:
            questions = type_answers(monkeypatch, texts)
            assert select("--interactive", "--number", 6, "--texts", "texts.txt") == 0
            return questions

        return type_in

    def expected(self, data, labels) -> list[int]:
        """Rows that a selector asks for when it is told these labels, None for a skip."""
        selector = SequentialSelector(fitted(data), data[0], "uherding", labelled=data[1])
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

    def test_a_second_run_continues_where_the_first_stopped(self, data, answer, capsys):
        answer("ant", "bee")
        answer("cat", "quit", "never read")
        rows = self.expected(data, [0, 1, 2])
        assert [int(line["row"]) for line in lines()] == rows
        assert "Going on from 2 answers in out.csv." in capsys.readouterr().out

    def test_undo_also_removes_answers_of_an_earlier_run(self, data, answer):
        answer("ant", "bee")
        questions = answer("undo", "undo", "undo", "cat")
        rows = self.expected(data, [0, 1])
        assert f"row {rows[0]};" in questions[-2]
        table = {int(line["row"]): line["label"] for line in lines()}
        assert table == {rows[0]: "cat", rows[1]: ""}

    def test_an_answer_that_is_no_label_is_asked_for_again(self, answer, capsys):
        answer("dog", "3", "-1", "x", "bee")
        assert [line["label"] for line in lines()] == ["bee"]
        shown = " ".join(capsys.readouterr().out.split())
        assert shown.count("A label is a number from 0 to 2 or a name (ant, bee, cat); or type") == 4

    def test_it_ends_after_the_given_number_of_answers(self, answer, capsys):
        assert len(answer(*["ant"] * 6)) == 6
        assert "6 answers in out.csv." in capsys.readouterr().out

    def test_unlabelled_rows_stay_in_the_file(self, answer):
        select("--number", 3)
        waiting = {line["row"] for line in lines()}
        answer("ant")
        table = lines()
        assert waiting <= {line["row"] for line in table}
        assert [line["label"] for line in table].count("ant") == 1

    def test_the_shares_that_are_shown_are_calibrated(self, data, answer):
        shown = [float(share) for share in re.findall(r"(\d+)%", answer()[0])]
        model = fitted(data)
        temperature = fit_temperature(LastLayerLaplace.untrained(data[1], CLASSES), *data[1:])
        row = self.expected(data, [None])[0]
        shares = (model.predict_logits(data[0][row : row + 1]) / temperature).softmax(1)[0]
        assert shown == [round(100.0 * share) for share in shares.sort(descending=True).values.tolist()]
        plain = model.predict_proba(data[0][row : row + 1], "plugin")[0]
        assert shown != [round(100.0 * share) for share in plain.sort(descending=True).values.tolist()]

    def test_the_temperature_is_fitted_again_when_a_fifth_of_the_labels_has_come_since(self, monkeypatch):
        counts: list[int] = []

        def note(prior, features, targets):
            counts.append(len(targets))
            return calibrate(prior, features, targets)

        monkeypatch.setattr(start, "calibrate", note)
        type_answers(monkeypatch, ("ant",) * 7)
        assert select("--interactive", "--number", 8) == 0
        assert counts == [LABELLED, LABELLED + 6, LABELLED + 7]  # the last one for the summary

    @pytest.mark.skipif(sys.platform != "linux", reason="sends SIGINT and SIGKILL")
    @pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
    def test_nothing_is_lost_when_the_process_ends(self, stop, data):
        command = [sys.executable, "-m", "lapal_ext", "select", "--pool", "pool.npy", "--features", "train.npy"]
        command += ["--labels", "labels.npy", "--out", "out.csv", "--classes", "names.txt", "--interactive"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ant\nbee\n")
        process.stdin.flush()
        asked = b""
        while asked.count(b"]: ") < 3:  # the command waits for the third answer
            byte = process.stdout.read(1)
            assert byte, asked
            asked += byte
        process.send_signal(stop)
        _, err = process.communicate(timeout=HANGS)
        assert process.returncode == (0 if stop == signal.SIGINT else -signal.SIGKILL), err
        rows = self.expected(data, [0, 1])
        assert [(int(line["row"]), line["label"]) for line in lines()] == list(zip(rows, ["ant", "bee"], strict=True))
        assert not list(Path().glob(".*out.csv"))


class TestFromNoLabel:
    """Questions without --features and --labels."""

    @pytest.fixture
    def answer(self, monkeypatch):
        """A function that runs the command with options and given answers, then the end of the input."""

        def type_in(options: str, *texts: str) -> list[str]:
            monkeypatch.setenv("COLUMNS", "60")
            questions = type_answers(monkeypatch, texts)
            command = f"select --pool pool.npy --out out.csv --interactive {options}"
            assert main(command.split()) == 0
            return questions

        return type_in

    def test_the_strategy_changes_when_every_class_has_an_answer(self, data, answer):
        pool = data[0]
        questions = answer("--classes names.txt --save model", "ant", "bee", "ant", "skip", "cat", "bee", "undo", "ant")
        prior = LastLayerLaplace.untrained(pool, 3, class_names=["ant", "bee", "cat"])
        selector = SequentialSelector(prior, pool, "maxherding", labelled=pool[:0].float())
        asked = []
        for label in ("ant", "bee", "ant", None, "cat"):
            asked.append(int(selector.ask()))
            if label is None:
                selector.skip(asked[-1])
            else:
                selector.tell(asked[-1], label)
        rows = [row for place, row in enumerate(asked) if place != 3]
        fitted = prior.condition_on(pool[rows], [0, 1, 0, 2], "joint")
        second = SequentialSelector(fitted, pool, "uherding", labelled=pool[rows].float())
        second.skip(asked)
        asked.append(int(second.ask()))
        assert [int(line["row"]) for line in lines()] == asked
        assert [line["label"] for line in lines()] == ["ant", "bee", "ant", "skip", "cat", "ant"]
        assert f"row {asked[-1]};" in questions[-2]
        every = prior.condition_on(pool[[*rows, asked[-1]]], [0, 1, 0, 2, 0], "joint")
        torch.testing.assert_close(
            LastLayerLaplace.load("model").mean, every.mean
        )  # fitted, not updated answer by answer

    def test_undo_across_the_change_asks_for_the_same_row_again(self, answer):
        questions = answer("--classes names.txt", "ant", "bee", "cat", "undo", "undo", "cat", "bee")
        rows = [re.search(r"row (\d+)", question)[1] for question in questions]
        assert rows[3] not in rows[:3]
        assert rows[4:6] == [rows[2], rows[1]]
        assert [line["label"] for line in lines()][:3] == ["ant", "cat", "bee"]
        assert [line["row"] for line in lines()][:2] == rows[:2]

    def test_new_classes_are_typed_twice_and_undo_removes_them(self, answer, capsys):
        answer("--save model", "games", "gmaes", "gmaes", "undo", "net", "net", "ga", "", "2", "1")
        assert [line["label"] for line in lines()] == ["games", "net", "games", "net"]
        out = " ".join(capsys.readouterr().out.split())
        assert "gmaes is no class so far. Did you mean games? Then press Enter. Type it again to add it." in out
        assert LastLayerLaplace.load("model").class_names == ("games", "net")

    def test_a_class_may_be_the_beginning_of_another_one(self, answer, capsys):
        questions = answer("", "category", "cat", "cat", "cate", "", "cat", "quit")
        assert [line["label"] for line in lines()] == ["category", "cat", "category", "cat"]
        assert "label [category]: " in questions
        answer("--classes-complete", "cate")
        assert [line["label"] for line in lines()][4:] == ["category"]
        assert "the beginning of one" in capsys.readouterr().out

    def test_undo_keeps_a_class_that_only_rows_outside_of_the_pool_have(self, answer):
        Path("ids.txt").write_text("\n".join(map(str, range(80))))
        Path("out.csv").write_text("id,label\nelsewhere,games\n")
        answer("--ids ids.txt", "net", "net", "undo", "games")
        assert sorted((line["id"] == "elsewhere", line["label"]) for line in lines()) == [
            (False, "games"),
            (True, "games"),
        ]

    def test_enter_takes_the_first_guess_once_there_is_one(self, answer):
        questions = answer("--classes names.txt", "", "bee", "", "skip", "c")
        guess = re.search(r"; the model says (\w+) .*\nlabel \[(\w+)\]: $", questions[2])
        assert [line["label"] for line in lines()] == ["bee", guess[1], "skip", "cat"]
        assert guess[1] == guess[2]
        assert questions[0].endswith("label: ")

    def test_enter_after_a_slip_takes_the_class_that_was_meant(self, answer):
        Path("names.txt").write_text("games\nnet\nmail\n")
        questions = answer("--classes names.txt", "net", "gmaes", "", "nte", "mail")
        assert [line["label"] for line in lines()] == ["net", "games", "mail"]
        assert questions[2] == "label [games]: "

    def test_several_classes_that_begin_with_an_answer_are_named(self, answer, capsys):
        Path("names.txt").write_text("mail\nmath\nnet\n")
        answer("--classes names.txt", "ma", "mat")
        assert [line["label"] for line in lines()] == ["math"]
        assert "Several classes begin with ma: mail, math." in " ".join(capsys.readouterr().out.split())

    def test_text_is_cut_and_no_control_character_reaches_the_terminal(self, answer, capsys):
        evil = "\x1b]0;title\x07\u202eabc\x9b31m"
        Path("names.txt").write_text(f"ant\n{evil}\ncat\n")
        Path("texts.txt").write_text("\n".join([f"{evil} 一 👩\u200d🔬 " + "word " * 300 + "end"] * 80))
        questions = answer("--classes names.txt --texts texts.txt", "+", "?", "1", "nonsense", "0")
        shown = "\n".join([*questions, capsys.readouterr().out])
        assert not set(shown) & set("\x1b\x07\x9b\u202e")
        assert "👩\u200d🔬" in shown
        assert "more lines: + shows them" in questions[0]
        assert "end" not in questions[0]
        assert "end" in shown
        assert max(shown.split("\n"), key=len)[60:] == ""
