"""Questions on the terminal, and runs that continue where an earlier one stopped."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lapal_ext import SequentialSelector
from tests.cli.select.problem import fitted, lines, select
from tests.fuzz.processes import HANGS


class TestInteractive:
    @pytest.fixture
    def answer(self, monkeypatch):
        """A function that runs the command with given answers, then the end of the input."""

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
        answer("dog", "3", "-1", "", "bee")
        assert [line["label"] for line in lines()] == ["bee"]
        assert capsys.readouterr().out.count("A label is a number from 0 to 2 or a name (ant, bee, cat); or type") == 4

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
        while asked.count(b"label: ") < 3:  # the command waits for the third answer
            byte = process.stdout.read(1)
            assert byte, asked
            asked += byte
        process.send_signal(stop)
        _, err = process.communicate(timeout=HANGS)
        assert process.returncode == (0 if stop == signal.SIGINT else -signal.SIGKILL), err
        rows = self.expected(data, [0, 1])
        assert [(int(line["row"]), line["label"]) for line in lines()] == list(zip(rows, ["ant", "bee"], strict=True))
        assert not list(Path().glob(".*out.csv"))
