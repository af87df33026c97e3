"""Answers that are corrected, emptied or skipped later, in the label file and on the terminal."""

import re

import pytest
import torch

from lapal_ext import LastLayerLaplace, SequentialSelector
from lapal_ext.cli import _parser, main
from lapal_ext.cli.select.answers import Line
from lapal_ext.cli.select.questions import Questions
from lapal_ext.cli.select.start import Start
from lapal_ext.pool.sharding import Ranks, Shard
from tests.cli.select.problem import CLASSES, fill, fitted, lines, select, write
from tests.cli.select.test_terminal import type_answers


class TestFile:
    def test_a_corrected_a_skipped_and_an_emptied_line(self, data, capsys):
        pool, features, targets = data
        assert select("--number", 4) == 0
        fill("ant", "bee", "cat", "ant")
        assert select("--number", 0, "--save", "model") == 0
        table = lines()
        for line, label in zip(table, ["bee", "skip", "", "ant"], strict=True):
            line["label"] = label
        write(table)
        capsys.readouterr()
        assert select("--number", 3, "--save", "model") == 0
        out = capsys.readouterr().out
        assert "Answers: 2. Rows of out.csv that still wait for a label: 1." in out  # the emptied line waits again
        assert len(lines()) == 4
        rows = [int(line["row"]) for line in lines()]
        every = torch.cat([features, pool[[rows[0], rows[3]]].float()]), torch.cat([targets, torch.tensor([1, 0])])
        assert LastLayerLaplace.load("model").mean.equal(LastLayerLaplace.fit_map(*every, CLASSES).mean)

        assert select("--number", 3, "--more") == 0
        assert len({line["row"] for line in lines()}) == 7


class TestBack:
    @pytest.fixture
    def answer(self, monkeypatch):
        """A function that runs the command with given answers, then the end of the input."""

        def type_in(*texts: str) -> list[str]:
            questions = type_answers(monkeypatch, texts)
            assert select("--interactive", "--number", 7, "--texts", "texts.txt", "--save", "model") == 0
            return questions

        return type_in

    def test_the_result_is_that_of_a_run_without_the_older_answers(self, data, answer):
        """Enter keeps an answer, and walks back to the open question."""
        pool, features, targets = data
        questions = answer("ant", "cat", "bee", "skip", "back", "ant", "back", "back", "back", "bee", "", "skip", "cat")
        rows = [int(re.search(r"\] row (\d+);", question)[1]) for question in questions]
        assert rows[5] == rows[3]  # back from the fifth question shows the fourth
        assert rows[7:12] == [rows[3], rows[2], rows[1], rows[2], rows[3]]
        assert questions[5].startswith(f"[answer 4 of 4] row {rows[3]}; its label is skip\n  text of row {rows[3]}\n")
        assert [question.rpartition("\n")[2] for question in questions[5:12:2]] == [
            "label [skip]: ",
            "label [ant]: ",
            "label [cat]: ",
            "label [ant]: ",
        ]
        selector = SequentialSelector(fitted(data), pool, "uherding", labelled=features)
        selector.tell(rows[:4], [0, 2, 1, 0])
        assert int(selector.ask()) == rows[6]
        selector = SequentialSelector(fitted(data), pool, "uherding", labelled=features)
        selector.tell([rows[0], rows[2], rows[1]], [0, 1, 1])
        selector.skip(rows[3])
        assert int(selector.ask()) == rows[12]
        selector.tell(rows[12], 2)
        assert int(selector.ask()) == rows[13]
        told = [(line["row"], line["label"]) for line in lines()]
        assert told == list(zip(map(str, [*rows[:4], rows[12]]), ["ant", "bee", "bee", "skip", "cat"], strict=True))
        kept = [*rows[:3], rows[12]]
        every = torch.cat([features, pool[kept].float()]), torch.cat([targets, torch.tensor([0, 1, 1, 2])])
        assert LastLayerLaplace.load("model").mean.equal(LastLayerLaplace.fit_map(*every, CLASSES).mean)

    def test_answers_of_an_earlier_run_and_undo_after_a_correction(self, data, answer, capsys):
        pool, features, _ = data
        answer("back", "ant", "bee")
        assert "There is no answer to go back to." in capsys.readouterr().out
        questions = answer("cat", "back", "back", "back", "back", "bee", "quit")
        assert "There is no answer before this one." in capsys.readouterr().out
        assert questions[4].startswith("[answer 1 of 3]")
        assert [line["label"] for line in lines()] == ["bee", "bee", "cat"]
        questions = answer("back", "undo", "skip")
        assert [line["label"] for line in lines()] == ["bee", "bee", "skip"]
        assert questions[2].startswith(f"[1/7] row {lines()[2]['row']};")
        rows = [int(line["row"]) for line in lines()]
        start = LastLayerLaplace.fit_map(
            torch.cat([features, pool[rows[:2]].float()]), torch.cat([data[2], torch.tensor([1, 1])]), CLASSES
        )
        selector = SequentialSelector(start, pool, "uherding", labelled=torch.cat([features, pool[rows[:2]].float()]))
        selector.skip(rows)
        assert questions[3].startswith(f"[2/7] row {int(selector.ask())};")

    def test_a_class_that_only_the_older_answer_had_is_gone(self, monkeypatch):
        """As are its number and the strategy that follows from the classes."""
        command = ["select", "--pool", "pool.npy", "--out", "out.csv", "--interactive", "--save", "model"]
        questions = type_answers(
            monkeypatch, ("games", "gmaes", "gmaes", "net", "net", "back", "back", "games", "", "?", "1")
        )
        assert main(command) == 0
        assert [line["label"] for line in lines()] == ["games", "games", "net", "net"]
        assert LastLayerLaplace.load("model").class_names == ("games", "net")
        assert "gmaes" not in questions[-1]


class TestQuestions:
    """The model between two questions, with trust that makes a difference visible."""

    def questions(self, data, given: list[Line]) -> Questions:
        command = "select --pool pool.npy --features train.npy --labels labels.npy --out out.csv"
        options = _parser().parse_args(command.split())
        start = Start(options, data[0], Shard(Ranks(), [0, len(data[0])]))
        questions = Questions(options, start, data[0], [])
        for count in range(1, len(given) + 1):
            questions.add(given[:count])
        return questions

    @pytest.mark.parametrize("label", [0, 1, None, "undo"])
    @pytest.mark.parametrize("before", [0, None])
    def test_the_older_answer_is_not_in_it(self, before, label, data):
        first, last = Line(7, label=2, trust=3.0), Line(9, label=before, skipped=before is None, trust=3.0)
        questions = self.questions(data, [first, last])
        if label == "undo":
            questions.take_back([first], 9)
            expected = [first]
        else:
            expected = [first, last._replace(label=label, skipped=label is None)]
            questions.correct(expected, expected[1])
        never = self.questions(data, expected)
        torch.testing.assert_close(questions.logits(9, expected), never.logits(9, expected))
        assert questions.ask() == (9 if label == "undo" else never.ask())
