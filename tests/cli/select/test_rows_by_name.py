"""Answers follow the ids of their rows when the pool changes between two runs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.cli import main
from tests.cli.select.problem import CLASSES, ROWS, fill, lines

RECORD = Path("out.csv.pool.json")


def name_of(row: int) -> str:
    return f"{row:03}"


def write_pool(features: torch.Tensor, rows: list[int], *, wrong: bool = False) -> None:
    """The pool and the table of its items: these rows of ``features``; ``wrong`` shifts the ids by one."""
    np.save("pool.npy", features[rows].numpy())
    with Path("items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "page"])
        writer.writerows([name_of(row), f"text, {row}", row // 10] for row in (rows[1:] + rows[:1] if wrong else rows))


def select(*options: object) -> int:
    command = ["--pool", "pool.npy", "--classes", "3", "--out", "out.csv", "--number", "4", "--classes-complete"]
    return main(["select", *command, *map(str, options)])


def by_name() -> dict[str, str]:
    return {line["id"]: line["label"] for line in lines()}


@pytest.fixture
def begun(data):
    """A label file with four answers, of a pool of the first 60 rows."""
    write_pool(data[0], list(range(60)))
    assert select("--items", "items.csv") == 0
    fill("0", "1", "2", "0")
    return data[0], by_name()


def test_the_label_file_carries_ids_and_all_columns_of_the_items(begun):
    assert begun[1].keys() == {name_of(int(line["row"])) for line in lines()}
    for line in lines():
        assert (line["text"], line["page"]) == (f"text, {int(line['row'])}", str(int(line["row"]) // 10))
    assert json.loads(RECORD.read_bytes())["ids"].keys() == begun[1].keys()


@pytest.mark.parametrize("dropped", ["", "row", "text,page,utility,suggested"])
def test_answers_follow_their_ids_through_another_order_and_size(begun, dropped, capsys):
    features, answers = begun
    table = [{name: value for name, value in line.items() if name not in dropped.split(",")} for line in lines()]
    with Path("out.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    gone = min(answers)
    rows = [row for row in range(ROWS - 1, -1, -1) if name_of(row) != gone]
    write_pool(features, rows)
    capsys.readouterr()
    assert select("--items", "items.csv", "--save", "model") == 0
    out = capsys.readouterr().out
    assert f"Rows of out.csv that are gone from the pool: 1 ({gone}). They stay in the file; the model does" in out
    assert "Answers: 3. Rows chosen: 4." in out
    after = by_name()
    assert len(after) == 8
    assert {name: after[name] for name in answers} == answers
    for line in lines():
        assert line["row"] == ("" if line["id"] == gone else str(rows.index(int(line["id"]))))
    kept = [int(name) for name in answers if name != gone]
    prior = LastLayerLaplace.untrained(features[rows], CLASSES)
    expected = prior.update(features[kept], torch.tensor([int(answers[name_of(row)]) for row in kept]), "joint")
    torch.testing.assert_close(LastLayerLaplace.load("model").mean, expected.mean)

    write_pool(features, list(range(ROWS)))  # it is back
    assert select("--items", "items.csv", "--save", "model") == 0
    assert "Answers: 4." in capsys.readouterr().out
    assert LastLayerLaplace.load("model").absorbed_labels == 4


def test_ids_in_another_order_than_the_features_are_noticed(begun, capsys):
    before = Path("out.csv").read_bytes()
    write_pool(begun[0], list(range(60)), wrong=True)
    assert select("--items", "items.csv") == 1
    err = capsys.readouterr().err
    assert "--pool has other features than before for 4 of the 4 ids in out.csv" in err
    assert "the lines of items.csv must have the order of the rows of the pool" in err
    assert Path("out.csv").read_bytes() == before
    RECORD.unlink()
    assert select("--items", "items.csv") == 0


def test_ids_must_be_given_again(begun, capsys):  # noqa: ARG001 the fixture writes the files
    assert select() == 1
    assert "out.csv was begun with ids of rows: pass the same --ids or --items" in capsys.readouterr().err


def test_a_lost_column_of_ids_is_named(begun, capsys):  # noqa: ARG001 the fixture writes the files
    table = [{name: cell for name, cell in line.items() if name != "id"} for line in lines()]
    with Path("out.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    assert select("--items", "items.csv") == 1
    shown = capsys.readouterr().err
    assert "out.csv has lost its column id, by which its rows are known: put the column back. To use" in shown
    assert "delete out.csv.pool.json. Its row numbers then count." in shown
    RECORD.unlink()
    assert select("--items", "items.csv") == 0
    assert {line["id"] for line in lines()} >= {name_of(int(line["row"])) for line in table}


def test_long_texts_are_read_back(begun):  # noqa: ARG001 the fixture writes the files
    text = "x" * 200_000  # csv itself reads no cell of more than 131,072 characters
    limit = csv.field_size_limit()
    Path("items.csv").write_text("id,text\n" + "".join(f"{name_of(row)},{text}\n" for row in range(60)))
    for _ in range(2):
        assert select("--items", "items.csv", "--more") == 0
    assert Path("out.csv").read_text().count(text) == 8
    assert csv.field_size_limit() == limit


def test_a_file_without_ids_gets_them(data):
    write_pool(data[0], list(range(60)))
    assert select() == 0
    fill("0", "1", "2", "0")
    Path("ids.txt").write_text("\n".join(map(name_of, range(60))) + "\n")
    assert select("--ids", "ids.txt") == 0
    assert by_name().keys() == {name_of(int(line["row"])) for line in lines()}
    write_pool(data[0], list(range(59, -1, -1)))
    assert select("--items", "items.csv", "--number", 0) == 0
    assert [int(line["row"]) for line in lines()] == [59 - int(line["id"]) for line in lines()]


def test_spreadsheets_drop_leading_zeros(begun):
    answers = begun[1]
    text = Path("out.csv").read_text().splitlines()
    cells = [line.split(",", 2) for line in text[1:]]
    changed = [f"{row},{float(name)},{rest}" for row, name, rest in cells]
    Path("out.csv").write_text("\n".join([text[0], *changed]) + "\n")
    assert select("--items", "items.csv", "--number", 0) == 0
    assert by_name() == answers


def test_duplicates_are_refused_with_both_lines(begun, capsys):  # noqa: ARG001 the fixture writes the files
    text = Path("out.csv").read_text().splitlines()
    Path("out.csv").write_text("\n".join([*text, text[2]]) + "\n")
    assert select("--items", "items.csv") == 1
    assert "out.csv, line 6: id '" in (err := capsys.readouterr().err)
    assert "occurs twice, first in line 3" in err
    Path("ids.txt").write_text("\n".join(["same", *map(name_of, range(1, 59)), "same"]))
    assert select("--ids", "ids.txt") == 1
    assert "ids.txt, lines 1 and 60: both rows have the id 'same'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,text\na,b\n", "--items must have one line for each of the 80 rows of the pool below its first one, got 1"),
        ("name,text\na,b\n", "items.csv, line 1: must have a column called id, got name, text"),
        ("id,label\na,b\n", "items.csv, line 1: must not have a column called 'label'"),
        ("id,annotator\na,b\n", "items.csv, line 1: must not have a column called 'annotator'"),
        (
            "id\n" + "\n".join(["a", *[f'"{k}\n"' for k in range(ROWS - 2)], "' '"]).replace("' '", '" "'),
            "line 159: an",
        ),
    ],
)
@pytest.mark.usefixtures("data")
def test_a_table_of_items_that_is_not_understood(content, message, capsys):
    Path("items.csv").write_text(content)
    assert select("--items", "items.csv") == 1
    assert message in capsys.readouterr().err
    if "must not" in message:  # before the pool is read
        assert select("--items", "items.csv", "--pool", "none.npy") == 1
        assert message in capsys.readouterr().err
    assert select("--items", "items.csv", "--texts", "texts.txt") == 1
    assert "--items has ids and texts: leave out --ids and --texts" in capsys.readouterr().err
