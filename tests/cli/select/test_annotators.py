"""Trust in answers, several answers of one row, and a label file for each of several people."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace, SequentialSelector
from lapal_ext.atomic_file import replace_file
from lapal_ext.cli import main
from lapal_ext.cli.select import label_file
from lapal_ext.cli.select.annotators import interleaved
from lapal_ext.cli.select.answers import Line
from lapal_ext.posterior.calibration import fit_temperature
from tests.cli.select.problem import CLASSES, ROWS, fitted, lines, select, write
from tests.cli.select.test_terminal import type_answers

GIVEN = ["--features", "train.npy", "--labels", "labels.npy", "--classes", "names.txt"]


def several(*options: object, files: str = "anna.csv bert.csv", given: tuple[str, ...] = tuple(GIVEN)) -> int:
    return main(["select", "--pool", "pool.npy", "--annotators", *files.split(), *given, *map(str, options)])


def rows(path: str) -> list[str]:
    return [line["row"] for line in lines(path)]


def answer(path: str, *labels: str) -> None:
    table = lines(path)
    for line, label in zip(table, labels, strict=False):
        line["label"] = label
    write(table, path)


class TestTrust:
    @pytest.mark.parametrize("start", ["labels", "nothing", "head"])
    def test_trust_reaches_the_fit_and_stays_in_the_file(self, data, start):
        """Two annotators of one row are two observations; an answer without any trust is none."""
        pool, features, targets = data
        text = "row,label,trust,annotator\n7,bee,0.5,anna\n7,cat,,bert\n3,ant,0,anna\n5,skip,,\n9,ant,2e0,\n"
        Path("out.csv").write_text(text)
        new, labels, trust = pool[[7, 7, 9]].float(), torch.tensor([1, 2, 0]), torch.tensor([0.5, 1.0, 2.0])
        prior = LastLayerLaplace.untrained(pool.float(), CLASSES)
        if start == "nothing":
            command = ["select", "--pool", "pool.npy", "--out", "out.csv", "--classes", "names.txt", "--save", "model"]
            assert main([*command, "--number", "2"]) == 0
            expected = prior.condition_on(new, labels, "joint", trust)
        elif start == "head":
            from safetensors.torch import save_file

            head = torch.nn.Linear(features.shape[1], CLASSES)
            save_file(dict(head.state_dict()), "head.safetensors")
            assert select("--number", 2, "--save", "model", "--head", "head.safetensors") == 0
            expected = LastLayerLaplace.from_linear(head, features, 10.0, standardize=True)
            expected.update(new, labels, gamma=trust)
        else:
            assert select("--number", 2, "--save", "model") == 0
            every = torch.cat([features, new]), torch.cat([targets, labels])
            weights = torch.cat([torch.ones(len(features)), trust])
            expected = LastLayerLaplace.fit_map(*every, CLASSES, weights=weights)
            first = torch.cat([features, pool[[7, 9]].float()]), torch.cat([targets, torch.tensor([2, 0])])
            temperature = fit_temperature(LastLayerLaplace.untrained(features, CLASSES), *first)
            assert json.loads(Path("model.temperature.json").read_bytes())["temperature"] == temperature
        torch.testing.assert_close(LastLayerLaplace.load("model").mean, expected.mean)
        assert (
            Path("out.csv").read_text().startswith("row,label,trust,annotator,utility\n7,bee,0.5,anna,\n7,cat,,bert,")
        )
        assert len({line["row"] for line in lines()}) == 6

    @pytest.mark.parametrize(("cell", "trust"), [("0,5", 0.5), ("1.0", 1.0), (" ", 1.0)])
    def test_cells_of_spreadsheets(self, cell, trust):
        Path("out.csv").write_text(f"row;label;trust\n1;ant;{cell}\n")
        [line] = label_file.LabelFile(Path("out.csv"), ROWS, label_file.Classes(["ant", "bee"])).lines
        assert line.trust == trust

    @pytest.mark.parametrize("cell", ["-1", "nan", "inf", "half", "50%"])
    def test_other_cells_are_errors(self, cell, capsys):
        Path("out.csv").write_text(f"row,label,trust\n1,ant,1\n2,,{cell}\n")
        assert select() == 1
        message = f"out.csv, line 3: trust must be a number of at least 0, got {cell!r}: type 0.5 for half the trust"
        assert message in capsys.readouterr().err

    def test_a_row_has_one_line_for_each_annotator(self, capsys):
        Path("out.csv").write_text("row,label,annotator\n1,ant,anna\n2,ant,\n1,bee,anna\n")
        assert select() == 1
        assert "out.csv, line 4: row 1 of annotator 'anna' occurs twice, first in line 2" in capsys.readouterr().err

    def test_disagreements_are_reported_and_rows_counted_once(self, capsys):
        answers = [f"{row},{name},{label}\n" for row in range(8) for name, label in (("anna", "ant"), ("bert", "bee"))]
        rest = [f"{row},,skip\n" for row in range(8, ROWS)]
        Path("out.csv").write_text("".join(["row,annotator,label\n", *answers, "8,bert,ant\n", *rest]))
        assert select() == 0
        out = capsys.readouterr().out
        assert f"Answers: 17. Every row of the pool has an answer, {ROWS - 9} of them skip." in out
        assert (
            "Rows with different labels: 8.\n  row 0: anna says ant, bert says bee\n  row 1: anna says ant, bert says"
            in out
        )
        assert out.count(" says ant") == 5
        assert "  and 3 more\nA row counts with each of its labels; to change that, correct one of them" in out

    def test_questions_keep_lines_of_several_annotators(self, monkeypatch, capsys):
        text = "row,label,annotator,trust\n7,bee,anna,\n7,,bert,\n3,,anna,0.5\n3,,bert,\n7,ant,carl,\n5,ant,,\n"
        Path("out.csv").write_text(text)
        type_answers(monkeypatch, ("back", "cat", "1", "undo", "2"))
        assert select("--interactive", "--number", ROWS) == 0
        table = [tuple(line.values())[:4] for line in lines()]
        assert table[:3] == [("7", "bee", "anna", ""), ("7", "ant", "carl", ""), ("5", "cat", "", "")]
        assert sorted(table[-3:]) == [("3", "", "anna", "0.5"), ("3", "", "bert", ""), ("7", "", "bert", "")]
        assert len(table) == 7
        assert "row 7: anna says bee, carl says ant" in capsys.readouterr().out

    def test_trust_counts_between_questions(self, data, monkeypatch):
        Path("out.csv").write_text("row,label,trust\n" + "".join(f"{row},,20\n" for row in range(ROWS)))
        questions = type_answers(monkeypatch, ("ant",) * 3)
        assert select("--interactive") == 0
        selectors = [SequentialSelector(fitted(data), data[0], "uherding", labelled=data[1]) for _ in range(2)]
        expected: tuple[list[int], list[int]] = ([], [])
        for trust, selector, rows in zip((20.0, 1.0), selectors, expected, strict=True):
            for _ in range(4):
                rows.append(row := int(selector.ask()))
                selector.tell(row, 0, trust)
        assert [int(question.partition("row ")[2].partition(";")[0]) for question in questions] == expected[0]
        assert expected[0] != expected[1]


class TestFiles:
    def test_a_column_with_other_annotators_does_not_count_and_is_named(self, capsys):
        text = "row,label,annotator\n1,ant,anna\n2,bee,carl\n3,ant,\n4,ant,dora\n"
        Path("anna.csv").write_text(text)
        Path("bert.csv").write_text("row,label,annotator\n1,ant,bert\n")
        assert several("--number", 0, "--save", "model") == 0
        out = capsys.readouterr().out
        assert "The column annotator of anna.csv (carl, dora) does not count: with --annotators, all answers in" in out
        assert "bert.csv (" not in out
        assert "(anna 4, bert 1)" in out
        assert Path("anna.csv").read_text().startswith("row,label,annotator")
        Path("anna.csv").write_text("row,label,annotator\n1,ant,anna\n1,bee,carl\n")
        assert several("--number", 0, "--save", "model") == 1
        message = "line 3: row 1 occurs twice, first in line 2: annotator does not count with --annotators"
        assert message in capsys.readouterr().err

    def test_rows_are_disjoint_but_for_the_overlap(self, capsys):
        assert several("--number", 5, "--overlap", 2) == 0
        anna, bert = rows("anna.csv"), rows("bert.csv")
        assert anna[:2] == bert[:2]
        assert len({*anna, *bert}) == 8
        assert select("--number", 8) == 0  # the same rows, dealt in turn
        assert [*anna[:2], *(row for pair in zip(anna[2:], bert[2:], strict=True) for row in pair)] == rows("out.csv")
        assert [line["common_to"] for line in lines("bert.csv")] == ["anna/bert"] * 2 + [""] * 3
        assert Path("anna.csv.pool.json").exists()
        capsys.readouterr()

        answer("anna.csv", "ant", "bee", "cat", "skip", "ant")
        answer("bert.csv", "ant", "cat")
        assert several("--number", 4, "--overlap", 2, "--save", "model") == 0
        assert rows("bert.csv") == bert
        assert len({*rows("anna.csv"), *bert}) == 12
        out = capsys.readouterr().out
        assert "Answers: 6 (anna 4, bert 2). Rows chosen: 4.\nanna.csv: rows added: 4.\n" in out
        assert (
            "bert.csv: rows added: 0, rows that waited for a label before: 3.\nFiles with rows that wait get no" in out
        )
        assert f"Rows with different labels: 1.\n  row {anna[1]}: anna says bee, bert says cat\n" in out
        before = {path: Path(path).read_bytes() for path in ("anna.csv", "bert.csv")}
        assert several("--number", 0, "--more") == 0
        assert before == {path: Path(path).read_bytes() for path in before}
        assert several("--number", 1, "--more", files="anna.csv bert.csv carl.tsv") == 0
        assert len({*rows("anna.csv"), *rows("bert.csv"), *rows("carl.tsv")}) == 15

    def test_the_model_is_fitted_to_the_answers_of_all(self, data):
        pool, features, targets = data
        several("--number", 2, "--overlap", 1)
        answer("anna.csv", "ant", "bee")
        answer("bert.csv", "cat", "cat")
        assert several("--number", 0, "--save", "model") == 0
        told = [int(row) for path in ("anna.csv", "bert.csv") for row in rows(path)]
        every = torch.cat([features, pool[told].float()]), torch.cat([targets, torch.tensor([0, 1, 2, 2])])
        expected = LastLayerLaplace.fit_map(*every, CLASSES)
        torch.testing.assert_close(LastLayerLaplace.load("model").mean, expected.mean)

    def test_the_summary_has_the_newest_answers_of_each_last(self):
        anna, bert = [Line(row) for row in (1, 2, 3, 4)], [Line(5), Line(6)]
        assert [line.row for line in interleaved([anna, bert])] == [1, 2, 5, 3, 4, 6]

    def test_a_pool_that_ends(self, capsys):
        np.save("pool.npy", np.load("pool.npy")[:8])
        assert several("--number", 5, "--overlap", 1) == 0
        assert (len(rows("anna.csv")), len(rows("bert.csv"))) == (5, 4)
        assert "There are no more rows than these 8." in capsys.readouterr().out
        for path in ("anna.csv", "bert.csv"):
            answer(path, *["ant"] * 5)
        assert several() == 0
        assert "Every row of the pool has an answer." in capsys.readouterr().out

    def test_answers_follow_ids_and_rows_may_be_gone(self, capsys):
        pool = np.load("pool.npy")
        text = ["id,text,page", *(f"n{row},text {row},{row // 10}" for row in range(ROWS))]
        Path("items.csv").write_text("\n".join(text))
        options = ("--number", 3, "--overlap", 1, "--items", "items.csv")
        assert several(*options) == 0
        for path in ("anna.csv", "bert.csv"):
            answer(path, "ant", "bee", "skip")
            assert [line["page"] for line in lines(path)] == [str(int(line["id"][1:]) // 10) for line in lines(path)]
        names = [line["id"] for line in lines("anna.csv")]
        kept = [row for row in range(ROWS - 1, -1, -1) if f"n{row}" != names[0]]
        np.save("pool.npy", pool[kept])
        Path("items.csv").write_text("\n".join([text[0], *(text[row + 1] for row in kept)]))
        capsys.readouterr()
        assert several(*options) == 0
        assert [line["id"] for line in lines("anna.csv")][-1] == names[0]
        assert len({line["id"] for path in ("anna.csv", "bert.csv") for line in lines(path)}) == 10
        out = capsys.readouterr().out
        assert f"Rows of bert.csv that are gone from the pool: 1 ({names[0]})." in out
        assert "Answers: 2 (anna 1, bert 1)." in out

    def test_an_interrupted_run_is_completed_by_the_next(self, monkeypatch):
        """Common rows reach those whose files were not written, and no other row is handed out twice."""
        written: list[Path] = []

        def replace(path, *rest):
            if written:
                raise KeyboardInterrupt
            written.append(path)
            replace_file(path, *rest)

        files = "anna.csv bert.csv carl.csv"
        with monkeypatch.context() as patched:
            patched.setattr(label_file, "replace_file", replace)
            assert several("--number", 5, "--overlap", 2, files=files) == 130
        anna = Path("anna.csv").read_bytes()
        assert not Path("bert.csv").exists()
        answer("anna.csv", "ant")
        assert several("--number", 5, "--overlap", 2, files=files) == 0
        assert rows("anna.csv") == re.findall(r"(?m)^(\d+),", anna.decode())
        assert rows("anna.csv")[:2] == rows("bert.csv")[:2] == rows("carl.csv")[:2]
        assert [len(rows(path)) for path in files.split()] == [5, 5, 5]
        assert len({row for path in files.split() for row in rows(path)}) == 2 + 3 * 3

    def test_a_file_that_was_changed_meanwhile_keeps_all_from_being_written(self, monkeypatch, capsys):
        check = label_file.LabelFile.check_unchanged

        def changed(file):
            Path("bert.csv").write_text("row,label\n1,ant\n")
            check(file)

        monkeypatch.setattr(label_file.LabelFile, "check_unchanged", changed)
        assert several() == 1
        assert "bert.csv was changed by another program meanwhile" in capsys.readouterr().err
        assert not Path("anna.csv").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--annotators", "a.csv", "--interactive"], "--interactive asks one person: pass the label file of that"),
            (["--annotators", "a.csv", "--out", "x.csv"], "--annotators has a label file for each person: leave out"),
            (["--annotators", "a.csv", "x/a.csv"], "--annotators must have files of different names, which tell"),
            (["--annotators", "a.csv", "no/b.csv"], "--annotators must lie in an existing folder, got no/b.csv"),
            (["--annotators", "a.csv", "b.xlsx"], "save, got b.xlsx: type --annotators b.csv"),
            (["--annotators", "a.csv", "b.csv", "--overlap", "11"], "--overlap must be at most --number, which is 10"),
            (["--out", "a.csv", "--overlap", "1"], "--overlap needs --annotators"),
            ([], "pass --out FILE.csv, or --annotators with a file for each person"),
        ],
    )
    def test_options_that_do_not_go_together(self, options, message, capsys):
        Path("x").mkdir()
        assert main(["select", "--pool", "pool.npy", *GIVEN, *options]) == 1
        assert message in capsys.readouterr().err
        assert not list(Path().glob("?.csv"))
