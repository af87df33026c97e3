"""What a run of select says about how far the labelling is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.cli.select.answers import Line
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.summary import Summary, checked, texts
from lapal_ext.posterior.calibration import calibrate
from lapal_ext.selection.stopping import ExpectedAccuracy, changed_classes, expected_accuracy
from tests.cli.select.problem import CLASSES, LABELLED, NAMES, ROWS, fill, lines
from tests.cli.select.test_from_no_label import select

ANSWERED = 70
RIGHT, UNSURE = "Suggestions that were right", "of rows that the model is unsure about"


@pytest.fixture
def answered(data):
    """A label file in which most rows of the pool have their true class."""
    targets = torch.arange(ROWS + LABELLED)[LABELLED:] % CLASSES
    assert select("--classes", "names.txt", "--number", 20) == 0
    fill(*(NAMES[targets[int(line["row"])]] for line in lines()))
    assert select("--classes", "names.txt", "--number", ANSWERED - 20) == 0
    fill(*(NAMES[targets[int(line["row"])]] for line in lines()[20:]))
    return data[0].float(), targets


def test_the_figures_are_those_of_the_model_with_all_answers(answered, capsys):
    capsys.readouterr()
    assert select("--classes", "names.txt", "--number", 5, "--save", "model") == 0
    printed = " ".join(capsys.readouterr().out.split())
    pool, targets = answered
    rows = torch.tensor([int(line["row"]) for line in lines()[:ANSWERED]])
    prior = LastLayerLaplace.untrained(pool, CLASSES)
    model = LastLayerLaplace.load("model")
    calibration = calibrate(prior, pool[rows], targets[rows])
    value, low, high = (round(100 * x) for x in expected_accuracy(model, pool, calibration, rows))
    assert f"Expected accuracy on the 10 rows without a label: {value} % ({low} to {high} %)." in printed
    counts = sorted(targets[rows].bincount().tolist())
    assert printed.split("Labels per class: ")[1].split(".")[0].split(" ")[1::2] == [
        f"{count}{comma}" for count, comma in zip(counts, (",", ",", ""), strict=True)
    ]
    right = [line["suggested"] == line["label"] for line in lines()[20:ANSWERED]]
    assert f"{RIGHT}: {sum(right)} of the last 50" in printed
    earlier = prior.condition_on(pool[rows[:56]], targets[rows[:56]], "joint")
    share = changed_classes(earlier, model, pool)
    assert (share <= 0.02) == ("More labels are unlikely to pay" in printed)


def test_sentences():
    classes = Classes(NAMES)
    right = [Line(row, label=0, suggested="ant") for row in range(40)]
    wrong = [Line(row, label=row % 2, suggested="cat") for row in range(40, 60)]
    summary = Summary([0] * 50 + [1] * 10, checked([*right, *wrong], classes), None, 20, None, 12)
    assert texts(summary, classes) == [
        "Labels per class: cat 0, bee 10, ant 50.",
        f"{RIGHT}: 30 of the last 50, {UNSURE}. Least often for bee 0 of 10, ant 30 of 40.",
    ]
    summary = summary._replace(accuracy=ExpectedAccuracy(0.9, 0.846, 0.951), rest=1, changed=0.0199, checked=[])
    assert texts(summary, classes)[1:] == [
        "Expected accuracy on the 1 row without a label: 90 % (85 to 95 %).",
        "More labels are unlikely to pay: the last 12 of 60 changed the class of 2.0 % of the rows.",
    ]
    assert len(texts(summary._replace(changed=0.0201), classes)) == 2
    assert texts(summary._replace(labels=[0] * 19), classes) == []
    many = Classes(map(str, range(100)))
    assert texts(Summary([99] * 20, [], None, 1, None, 4), many) == [
        "Labels per class: 0 0, 1 0, 2 0, 3 0, 4 0, 5 0, 6 0, 7 0, … up to 99 20."
    ]


def test_lines_without_a_suggestion_or_an_answer_do_not_count():
    some = [
        Line(0, label=0),
        Line(1, suggested="ant"),
        Line(2, skipped=True, suggested="ant"),
        Line(3, label=1, suggested="2"),
    ]
    assert checked(some, Classes(NAMES)) == [(1, False)]


@pytest.mark.usefixtures("answered")
@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_a_picture(name, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    assert select("--classes", "names.txt", "--number", 3, "--picture", name) == 0
    assert f"The picture is in {name}." in capsys.readouterr().out
    assert Path(name).read_bytes()[:4] == (b"\x89PNG" if name.endswith("png") else b"<?xm")


@pytest.mark.usefixtures("data")
def test_a_picture_before_the_first_answer():
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    assert select("--classes", "names.txt", "--picture", "picture.pdf") == 0
    assert Path("picture.pdf").read_bytes()[:4] == b"%PDF"


@pytest.mark.usefixtures("data")
def test_a_picture_of_another_kind_is_refused_before_the_work(capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    assert select("--classes", "names.txt", "--picture", "picture.doc") == 1
    assert "--picture must be a .png or .svg or .pdf file, got picture.doc" in capsys.readouterr().err
    assert not Path("out.csv").exists()


@pytest.mark.usefixtures("data")
def test_the_pool_of_a_single_row_has_a_picture():
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    np.save("pool.npy", np.ones((1, 4), np.float32))
    assert select("--classes", "names.txt", "--number", 1, "--picture", "picture.png") == 0


@pytest.mark.usefixtures("data")
def test_names_of_classes_are_drawn_as_they_are(monkeypatch):
    """matplotlib reads what stands between two dollar signs as a formula."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    from matplotlib.figure import Figure

    drawn = []
    write = Figure.savefig

    def savefig(figure, *args, **kwargs):
        write(figure, *args, **kwargs)
        drawn.extend(label.get_text() for label in figure.axes[1].get_xticklabels() if not label.get_parse_math())

    monkeypatch.setattr(Figure, "savefig", savefig)
    Path("names.txt").write_text("fee #1 $1 #$2\n$0-$50\nc\n")
    assert select("--classes", "names.txt", "--picture", "picture.png") == 0
    assert sorted(drawn) == ["$0-$50", "c", "fee #1 $1 #$2"]
