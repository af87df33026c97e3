"""Answers in a label file are never absorbed over another pool than the one that they were given for."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.select.problem import fill, lines, select

RECORD = Path("out.csv.pool.json")


def reverse() -> None:
    np.save("pool.npy", np.load("pool.npy")[::-1].copy())


def change() -> None:
    pool = np.load("pool.npy")
    pool[17, 3] += 1
    np.save("pool.npy", pool)


def widen() -> None:
    np.save("pool.npy", np.load("pool.npy").astype(np.float32))


def append() -> None:
    pool = np.load("pool.npy")
    np.save("pool.npy", np.concatenate([pool, pool[:1]]))


def shorten() -> None:
    np.save("pool.npy", np.load("pool.npy")[:40])


OTHERS = {
    reverse: "has the same rows in another order",
    change: "has rows with other values",
    widen: "has dtype float32 and not float16",
    append: "has 81 rows and not 80",
    shorten: "has 40 rows and not 80",
}


@pytest.mark.parametrize("mode", [[], ["--interactive"]], ids=["file", "interactive"])
@pytest.mark.parametrize("alter", OTHERS, ids=lambda alter: alter.__name__)
def test_another_pool_is_refused(alter, mode, capsys):
    assert select("--number", 4) == 0
    fill("ant", "bee")
    before, record = Path("out.csv").read_bytes(), RECORD.read_bytes()
    alter()
    assert select("--number", 2, *mode) == 1
    shown = capsys.readouterr().err
    assert f"out.csv was begun with another pool: --pool {OTHERS[alter]}" in shown
    assert "another --out" in shown
    assert "delete out.csv.pool.json" in shown
    assert (Path("out.csv").read_bytes(), RECORD.read_bytes()) == (before, record)


def test_the_way_to_go_on_that_the_error_names():
    assert select("--number", 4) == 0
    fill("ant", "bee")
    reverse()
    assert select("--number", 2) == 1
    RECORD.unlink()
    assert select("--number", 2, "--more") == 0
    assert len(lines()) == 6
    reverse()
    assert select("--number", 2) == 1  # it is written again


def test_the_record_is_written_in_both_modes(monkeypatch):
    assert select("--number", 2) == 0
    record = RECORD.read_bytes()
    assert json.loads(record)["rows"] == 80
    for path in (RECORD, Path("out.csv")):
        path.unlink()
    answers = iter(["ant", "quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert select("--interactive") == 0
    assert RECORD.read_bytes() == record


def test_a_label_file_that_is_begun_anew_takes_any_pool():
    assert select("--number", 2) == 0
    Path("out.csv").unlink()
    reverse()
    assert select("--number", 2) == 0
    assert select("--number", 2, "--more") == 0
    assert len(lines()) == 4


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"rows": 80}', "\x00"])
def test_a_damaged_record_is_an_error(content, capsys):
    assert select("--number", 2) == 0
    RECORD.write_text(content)
    assert select("--number", 2) == 1
    assert "out.csv.pool.json is damaged, or no checksum of a pool" in capsys.readouterr().err


def test_an_interrupted_first_run_leaves_no_answers_without_a_record(monkeypatch):
    """The record is on disk before the label file is."""
    from lapal_ext.cli.select import label_file, pool_record

    written: list[str] = []
    replace = label_file.replace_file

    def note(path, *rest):
        written.append(path.name)
        replace(path, *rest)

    for module in (label_file, pool_record):
        monkeypatch.setattr(module, "replace_file", note)
    assert select("--number", 2) == 0
    assert select("--number", 2, "--more") == 0
    assert written == ["out.csv.pool.json", "out.csv", "out.csv"]
