"""What spreadsheets, terminals and other people's arrays do to the command's input and output."""

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.select.problem import LABELLED, NAMES, fill, lines, select


@pytest.mark.parametrize("name", ["x.xlsx", "x.XLSX", "x.xls", "x.ods", "x.npy", "x", "out.csv.gz", "x.json"])
@pytest.mark.parametrize("mode", [[], ["--interactive"]])
def test_a_file_that_is_no_text_is_refused(name, mode, capsys):
    Path(name).write_bytes(b"PK\x03\x04")
    assert select("--out", name, *mode) == 1
    assert f"--out must be a .csv or .tsv or .txt file, a text that spreadsheets open and save, got {name}" in (
        capsys.readouterr().err
    )
    assert Path(name).read_bytes() == b"PK\x03\x04"


@pytest.mark.parametrize("name", ["x.csv", "x.CSV", "x.tsv", "x.txt"])
def test_a_text_is_accepted(name):
    assert select("--out", name, "--number", 1) == 0
    assert Path(name).exists()


@pytest.mark.parametrize("digits", [".0", ".00", ""])
def test_rows_and_labels_may_have_become_floats(digits):
    rows = [3, 17, 79]
    text = "".join(f"{row}{digits},{row % 3}{digits}\n" for row in rows)
    Path("out.csv").write_text(f"row,label\n{text}")
    assert select("--number", 1) == 0
    assert [(int(line["row"]), line["label"]) for line in lines()[:3]] == [(row, NAMES[row % 3]) for row in rows]


@pytest.mark.parametrize("row", ["80.0", "3.5", "1e1", "-1.0", "3.", ".0", "1,0"])
def test_other_floats_are_no_rows(row, capsys):
    Path("out.csv").write_text(f'row,label\n"{row}",ant\n')
    assert select() == 1
    assert "row must be a whole number in [0, 80)" in capsys.readouterr().err


def test_more_than_ten_classes_may_have_become_floats():
    Path("names.txt").unlink()
    Path("out.csv").write_text("row,label\n1,120.0\n2,3.0\n")
    assert select("--classes", 200, "--number", 1) == 0
    assert [line["label"] for line in lines()[:2]] == ["120", "3"]


@pytest.mark.parametrize(
    ("content", "written"),
    [
        ('row;label;"city, state"\n1;cat;x\n', "row;label;city, state;utility\n1;cat;x;\n"),
        ("row;label;a, b, c, d\n1;cat;x\n", "row;label;a, b, c, d;utility\n1;cat;x;\n"),
        ('"row"\t"label"\t"a;b,c"\n1\tcat\tx\n', "row\tlabel\ta;b,c\tutility\n1\tcat\tx\t\n"),
        ('"a;b;c;d",row,label\nx,1,cat\n', "a;b;c;d,row,label,utility\nx,1,cat,\n"),
        ("row,label,,\n1,cat,,\n", "row,label,utility\n1,cat,\n"),
        ("row,label,,,,\n1,cat\n", "row,label,utility\n1,cat,\n"),
        ("row,label,,,\n1,cat,x,\n", "row,label,,utility\n1,cat,x,\n"),
        ("row,label\n1,cat,,\n", "row,label,utility\n1,cat,\n"),
        ("sep=;\nrow;label\n1;cat\n", "sep=;\nrow;label;utility\n1;cat;\n"),
        ('"SEP=|"\r\nrow|label\r\n1|cat\r\n', '"SEP=|"\r\nrow|label|utility\r\n1|cat|\r\n'),
        ("\ufeffsep=\t\nrow\tlabel\n1\tcat\n", "\ufeffsep=\t\nrow\tlabel\tutility\n1\tcat\t\n"),
        ("\n\n ,,\nrow,label\n1,cat\n", "row,label,utility\n1,cat,\n"),
        ("row,label,note\n ,,\n1,cat,x\n\t, ,\n", "row,label,note,utility\n1,cat,x,\n"),
    ],
)
def test_a_table_of_a_spreadsheet_is_understood_and_written_back(content, written):
    Path("out.csv").write_bytes(content.encode())
    assert select("--number", 1) == 0
    table = Path("out.csv").read_bytes().decode()
    assert table.startswith(written)
    assert len(table.removeprefix(written).splitlines()) == 1, "one chosen row"
    assert select("--number", 1) == 0
    assert Path("out.csv").read_bytes().decode() == table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("row,label\n1,cat,,x\n", "out.csv, line 2 has more cells than the first line has columns"),
        ("row,label,,\n1,cat,,x\n", "out.csv must have columns of different names"),
        ("sep=;\n\nrow;label\n\n1;dog\n", "out.csv, line 5: label must be"),
        ("sep=;\nrow,label\n1,cat\n", "out.csv must have a column called row, got row,label"),
        ("\n\n", "out.csv must have a column called row, got nothing"),
        ("row,label,note\n ,cat,\n", "out.csv, line 2: row must be a whole number"),
    ],
)
def test_no_answer_of_a_spreadsheet_is_dropped(content, message, capsys):
    Path("out.csv").write_text(content)
    assert select("--number", 1) == 1
    assert message in capsys.readouterr().err
    assert Path("out.csv").read_text() == content


def test_a_new_tsv_file_has_tabs_and_an_older_one_stays_as_it_is():
    assert select("--number", 1, "--out", "x.TSV") == 0
    assert Path("x.TSV").read_text().startswith("row\tutility\tsuggested\tlabel\n")
    assert select("--number", 1, "--more", "--out", "x.TSV") == 0
    assert [line.count("\t") for line in Path("x.TSV").read_text().splitlines()] == [3, 3, 3]
    Path("old.tsv").write_text("row,label\n1,cat\n")
    assert select("--number", 1, "--out", "old.tsv") == 0
    assert Path("old.tsv").read_text().startswith("row,label,utility\n1,cat,\n")


def test_a_table_of_items_may_have_its_commas_in_a_name():
    rows = "".join(f"a{row};text {row};x\n" for row in range(80))
    Path("items.csv").write_text(f'sep=;\nid;text;"city, state";;\n{rows}')
    assert select("--number", 1, "--items", "items.csv") == 0
    assert lines()[0]["city, state"] == "x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_that_is_not_utf8(encoding, monkeypatch):
    names = ["größer", "猫", "🐕", "d", "e", "f", "g"]
    Path("names.txt").write_text("\n".join(names), encoding="utf-8")
    Path("texts.txt").write_text("\n".join(["“Ω” – 漢字"] * 80), encoding="utf-8")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding, errors="strict"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("1\n猫\nbogus\nquit\n".encode()), encoding="utf-8"))
    assert select("--interactive", "--texts", "texts.txt", "--out", "größe.csv") == 0
    sys.stdout.flush()
    assert b"row" in shown.getvalue()
    assert b"answers in gr" in shown.getvalue()
    with Path("größe.csv").open(encoding="utf-8", newline="") as file:
        assert [line["label"] for line in csv.DictReader(file)] == ["猫", "猫"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda y: y.astype(np.float64), "float64 [30]: save labels.astype(numpy.int64)"),
        (lambda y: y.astype(np.float32), "float32 [30]: save labels.astype(numpy.int64)"),
        (lambda y: y > 0, "bool [30]: save labels.astype(numpy.int64)"),
        (lambda y: y[:, None], "int64 [30, 1]: save labels[:, 0]"),
        (lambda y: np.eye(3, dtype=np.int64)[y], "[30, 3]: save one label per row of --features, labels.argmax(1)"),
        (lambda y: np.array(NAMES)[y].astype("S"), "|S3 [30]: give --classes a file with the names"),
    ],
)
def test_the_hint_about_labels_is_right(make, message, capsys):
    np.save("labels.npy", make(np.load("labels.npy")))
    assert select() == 1
    shown = capsys.readouterr().err
    assert "--labels must be a vector of integers, the numbers of classes, got " in shown
    assert message in shown


def test_the_hint_about_float_labels_works():
    labels = np.load("labels.npy")
    np.save("labels.npy", labels.astype(np.float64))
    assert select() == 1
    np.save("labels.npy", np.load("labels.npy").astype(np.int64))
    assert select("--number", 1) == 0


def test_names_are_labels_where_classes_have_names(capsys):
    labels = np.load("labels.npy")
    assert select("--number", 3) == 0
    expected = Path("out.csv").read_bytes()
    Path("out.csv").unlink()
    np.save("labels.npy", np.array(NAMES)[labels])
    assert select("--number", 3) == 0
    assert Path("out.csv").read_bytes() == expected
    wrong = np.array(NAMES)[labels]
    wrong[LABELLED - 1] = "eel"
    np.save("labels.npy", wrong)
    fill("ant")
    assert select() == 1
    assert "labels.npy must hold names that --classes has, got 'eel' in row 29" in capsys.readouterr().err
    assert select("--classes", 3) == 1
