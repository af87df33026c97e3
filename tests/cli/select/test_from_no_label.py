"""From a pool without any label to a finished one."""

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.cli import main
from tests.cli.select.problem import CLASSES, LABELLED, NAMES, ROWS, fill, lines, write

COMMAND = ["select", "--pool", "pool.npy", "--out", "out.csv"]


def select(*options: object) -> int:
    return main([*COMMAND, *map(str, options)])


def picked() -> list[int]:
    return [int(line["row"]) for line in lines()]


def test_maxherding_until_every_class_has_an_answer_then_uherding(data, capsys):
    pool = data[0].float()
    assert select("--classes", "names.txt", "--number", 3) == 0
    prior = LastLayerLaplace.untrained(pool, CLASSES)
    assert picked() == select_batch(prior, data[0], 3, "maxherding").indices.tolist()
    assert {line["suggested"] for line in lines()} == {""}
    assert "Classes with an answer: 0 of 3; without: ant, bee, cat." in capsys.readouterr().out

    fill("ant", "bee", "ant")
    first = torch.tensor(picked())
    assert select("--classes", "names.txt", "--number", 2) == 0
    expected = select_batch(prior, data[0], 2, "maxherding", labelled=pool[first], exclude=first)
    assert picked()[3:] == expected.indices.tolist()

    fill("cat", "skip")
    first, known = torch.tensor(picked()), torch.tensor(picked()[:4])
    capsys.readouterr()
    assert select("--classes", "names.txt", "--number", 4, "--save", "model") == 0
    fitted = prior.condition_on(pool[known], torch.tensor([0, 1, 0, 2]), "joint")
    expected = select_batch(fitted, data[0], 4, "uherding", labelled=pool[first], exclude=first)
    assert picked()[5:] == expected.indices.tolist()
    guesses = fitted.predict_logits(data[0][expected.indices]).argmax(1)
    assert [line["suggested"] for line in lines()[5:]] == [NAMES[guess] for guess in guesses]
    assert "Classes with an answer" not in capsys.readouterr().out
    saved = LastLayerLaplace.load("model")
    assert saved.class_names == tuple(NAMES)
    torch.testing.assert_close(saved.mean, fitted.mean)


def test_the_person_may_say_that_these_are_all_classes(data):
    assert select("--classes", 3, "--number", 3) == 0
    fill("0", "1", "1")
    rows = torch.tensor(picked())
    assert select("--classes", 3, "--number", 3, "--classes-complete") == 0
    fitted = LastLayerLaplace.untrained(data[0], 3).update(data[0][rows], torch.tensor([0, 1, 1]), "joint")
    expected = select_batch(fitted, data[0], 3, "uherding", labelled=data[0][rows], exclude=rows)
    assert picked()[3:] == expected.indices.tolist()


def test_classes_may_come_with_the_answers(capsys):
    assert select("--number", 4) == 0
    fill("games", "net", "games", "nett")
    capsys.readouterr()
    assert select("--number", 2, "--save", "model") == 0
    assert LastLayerLaplace.load("model").class_names == ("games", "net", "nett")
    assert "Classes so far: 3: games, net, nett." in capsys.readouterr().out
    fill("net", "1")
    assert select() == 1  # a number means nothing where classes are numbered as they come
    assert "line 7: label must be the name of its class" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["undo", "Quit", "?", "+"])
def test_a_class_of_the_answers_may_not_have_the_name_of_a_command(command, capsys):
    assert select("--number", 2) == 0
    fill("games", command)
    before = Path("out.csv").read_bytes()
    assert select() == 1
    message = f"out.csv, line 3: a class must not be called '{command}', which is a command of --interactive"
    assert message in capsys.readouterr().err
    assert Path("out.csv").read_bytes() == before


def test_a_class_that_may_be_a_slip_is_named(capsys):
    assert select("--number", 4) == 0
    fill("games", "net", "games", "gmaes")
    assert select("--number", 2) == 0
    assert "Is 'gmaes' (one label) another class than 'games' (2)?" in capsys.readouterr().out


@pytest.mark.parametrize("labelled", [False, True])
def test_a_new_class_beside_others(labelled, capsys):
    files = ["--features", "train.npy", "--labels", "labels.npy"] if labelled else []
    options = [*files, "--classes", "names.txt", "--save", "model"]
    assert select(*options, "--number", 2) == 0
    fill("ant", "dog")
    assert select(*options) == 1
    assert "got 'dog' (--new-classes makes it a class)" in capsys.readouterr().err
    assert select(*options, "--new-classes") == 0
    assert LastLayerLaplace.load("model").class_names == (*NAMES, "dog")


def test_a_single_class_with_labels_may_be_the_first_of_several(capsys):
    Path("one.txt").write_text("ant\n")
    np.save("labels.npy", np.zeros(LABELLED, np.int64))
    options = ["--features", "train.npy", "--labels", "labels.npy", "--classes", "one.txt", "--new-classes"]
    assert select(*options, "--number", 2, "--save", "model") == 0
    assert {line["suggested"] for line in lines()} == {"ant"}
    assert "model is not written: a model needs answers, and at least two classes" in capsys.readouterr().out
    fill("bee", "ant")
    assert select(*options, "--save", "model") == 0
    assert LastLayerLaplace.load("model").class_names == ("ant", "bee")


def test_new_classes_are_offered_only_where_they_can_be_added(capsys):
    assert select("--classes", 3, "--number", 2) == 0
    fill("3", "dog")
    assert select("--classes", 3) == 1
    assert "got '3' (--new-classes makes it a class)" in capsys.readouterr().err
    assert select("--classes", 4) == 1
    assert capsys.readouterr().err.endswith("got 'dog'\n")
    assert select("--classes", 3, "--new-classes") == 1
    assert "labels must be all numbers or all names, got 'dog' where others are numbers" in capsys.readouterr().err


def test_a_finished_pool_is_absorbed_and_saved(data, capsys):
    assert select("--classes", "names.txt", "--number", ROWS) == 0
    fill(*(NAMES[row % CLASSES] for row in picked()[:-1]), "skip")
    rows = torch.tensor(picked()[:-1])
    before = lines()
    capsys.readouterr()
    assert select("--classes", "names.txt", "--save", "model") == 0
    out = capsys.readouterr().out
    assert f"Answers: {ROWS - 1}. Every row of the pool has an answer, 1 of them skip." in out
    assert "The model with all answers is in model." in out
    expected = LastLayerLaplace.untrained(data[0], CLASSES).update(data[0][rows], rows % CLASSES, "joint")
    torch.testing.assert_close(LastLayerLaplace.load("model").mean, expected.mean)
    assert lines() == before


@pytest.mark.parametrize("number", [0, 5])
def test_no_rows_are_added_while_others_wait(number, capsys):
    assert select("--classes", 3, "--number", 4) == 0
    fill("0", "1", "2")
    before = lines()
    capsys.readouterr()
    assert select("--classes", 3, "--number", number, "--save", "model") == 0
    out = capsys.readouterr().out
    assert "Answers: 3. Rows of out.csv that still wait for a label: 1." in out
    assert ("pass --more" in out) == (number > 0)
    assert lines() == before
    assert LastLayerLaplace.load("model").absorbed_labels == 3


def test_a_folder_of_parts_is_one_pool(data):
    assert select("--classes", 3, "--number", 5) == 0
    expected = Path("out.csv").read_bytes()
    Path("pool").mkdir()
    for number, rows in ((2, slice(0, 30)), (10, slice(30, 30)), (11, slice(30, ROWS))):
        np.save(f"pool/part{number}.npy", data[0][rows].numpy())
    np.save("pool/part2.npy.targets.npy", np.zeros(30, np.int64))
    Path("out.csv").unlink()
    assert select("--pool", "pool", "--classes", 3, "--number", 5) == 0
    assert Path("out.csv").read_bytes() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--features", "train.npy"], "--features needs --labels too; leave out both if nothing has a label yet"),
        (["--labels", "labels.npy"], "--labels needs --features too"),
        (["--head", "head.safetensors"], "--head needs --features and --labels"),
        (["--pool", "empty.npy"], "--pool has no row: empty.npy has the shape [0, 6]"),
        (["--pool", "nan.npy"], "--pool must be finite, got NaN or infinity in row 7"),
        (["--pool", "folder"], "--pool must be a file, or a folder of .npy or .safetensors files, got folder"),
        (["--classes", "1"], "--classes must be at least 2, got 1"),
        (["--classes", "one.txt"], "one.txt must hold the names of at least 2 classes, one per line, got 1"),
        (["--classes", "utf16.txt"], "utf16.txt is in UTF-16: save it as UTF-8 (a spreadsheet: Save as, CSV UTF-8)"),
        (["--out", "x.xlsx"], "type --out x.csv"),
    ],
)
def test_what_is_missing_is_named(options, message, data, capsys):
    np.save("empty.npy", data[0][:0].numpy())
    broken = data[0].numpy().copy()
    broken[7, 0] = np.nan
    np.save("nan.npy", broken)
    Path("folder").mkdir()
    Path("one.txt").write_text("ant\n")
    Path("utf16.txt").write_text("ant\nbee\n", encoding="utf-16")
    assert select(*options) == 1
    assert message in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_labels_may_be_names_or_lines_of_text(data):
    labels = ["--features", "train.npy", "--labels"]
    assert select(*labels, "labels.npy", "--classes", "names.txt") == 0
    expected = picked()
    names = [NAMES[label] for label in data[2].tolist()]
    np.save("named.npy", np.array(names))
    Path("labels.txt").write_text("\n".join(names) + "\n")
    Path("numbers.txt").write_text("\n".join(map(str, data[2].tolist())))
    for file in ("named.npy", "labels.txt", "numbers.txt"):
        Path("out.csv").unlink()
        assert select(*labels, file) == 0
        assert picked() == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_and_their_accents_may_be_composed_in_two_ways(form, capsys):
    """A keyboard composes é, and macOS takes it apart in the names of files."""
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    Path("ids.txt").write_text("\n".join(normalize(form, f"café{row}.jpg") for row in range(ROWS)))
    Path("classes.txt").write_text(normalize(form, "café\nthé\n"))
    options = ("--ids", "ids.txt", "--classes", "classes.txt", "--number", 2)
    assert select(*options) == 0
    table = lines()
    for line, label in zip(table, ("café", "thé"), strict=True):
        line |= {"id": normalize(other, line["id"]), "label": normalize(other, label)}
    write(table)
    capsys.readouterr()
    assert select(*options) == 0
    printed = capsys.readouterr().out
    assert "Answers: 2." in printed
    assert "gone" not in printed
    assert [line["label"] for line in lines()[:2]] == ["café", "thé"]
    Path("named.txt").write_text("\n".join(normalize(other if row % 2 else form, "café") for row in range(LABELLED)))
    Path("out.csv").unlink()
    assert select(*options, "--features", "train.npy", "--labels", "named.txt") == 0


@pytest.mark.parametrize(
    ("place", "slip", "content", "message"),
    [
        (29, "NA", range(LABELLED), "labels.txt, label 30: labels must be all numbers or all names, got 'NA'"),
        (3, "-1", range(LABELLED), "labels.txt, label 4: labels must be all numbers or all names, got '-1'"),
        (
            0,
            "7",
            NAMES * (LABELLED // CLASSES),
            "label 1: labels must be all numbers or all names, got '7'",
        ),
    ],
)
def test_one_slip_does_not_make_names_of_numbers(place, slip, content, message, capsys):
    written = list(map(str, content))
    written[place] = slip
    Path("labels.txt").write_text("\n".join(written))
    assert select("--features", "train.npy", "--labels", "labels.txt") == 1
    assert message in capsys.readouterr().err


def test_numbers_that_no_row_has_are_named(capsys):
    assert select("--number", 3) == 0
    fill("1", "3", "1")
    capsys.readouterr()
    assert select("--number", 1) == 0
    assert "Labels are the numbers of classes, from 0 on, and no row has 0, 2." in capsys.readouterr().out
    assert select("--number", 1, "--classes", CLASSES + 1) == 0
    assert "no row has" not in capsys.readouterr().out  # the person has said that these are classes


def test_an_older_model_is_said_to_stay(capsys):
    assert select("--number", 2) == 0
    Path("model").write_text("older")
    assert select("--save", "model") == 0
    assert "model is not written" in (printed := capsys.readouterr().out)
    assert "The older model in model stays." in printed


def test_a_class_that_nobody_has_named_is_not_suggested(capsys):
    assert select("--number", 1) == 0
    fill("games")
    assert select("--number", ROWS, "--save", "model") == 0  # the model needs a second class, which has no name
    assert {line["suggested"] for line in lines()[1:]} == {"games", ""}
    assert "model is not written: a model needs answers, and at least two classes" in capsys.readouterr().out
    assert not Path("model").exists()
