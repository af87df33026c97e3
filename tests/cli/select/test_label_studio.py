"""``--label-studio``: exports have the answers in place of the label file, and the chosen tasks are written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.cli import main
from lapal_ext.posterior.calibration import fit_temperature
from tests.cli.select.problem import CLASSES, LABELLED, NAMES, ROWS
from tests.cli.select.problem import lines as lines_of_label_file

FIRST = 101  # id of the task of row 0
CONFIG = '<View><Text name="text" value="$text"/><Choices name="kind" toName="text">{}</Choices></View>'
Answers = dict[tuple[int, int], str | None]  # by row and annotator; None is a skip


def export(answers: Answers, rows: Any = range(ROWS), path: str = "project.json", **data: str) -> None:
    tasks = []
    for row in rows:
        notes = []
        for number, ((answered, user), label) in enumerate(answers.items()):
            choice = {"from_name": "kind", "to_name": "text", "type": "choices", "value": {"choices": [label]}}
            fields = {"id": number, "completed_by": user, "was_cancelled": label is None}
            made = {
                "updated_at": f"2026-11-30T14:{number // 60:02}:{number % 60:02}Z",
                "result": [choice] if label else [],
            }
            notes += [fields | made] if answered == row else []
        shown = {"text": f"text of row {row}", **{name: text.format(row) for name, text in data.items()}}
        tasks.append(
            {"id": FIRST + row, "data": shown, "annotations": notes, "predictions": [3], "meta": {"page": row}}
        )
    Path(path).write_text(json.dumps(tasks))


def select(*options: object, config: bool = True) -> int:
    Path("config.xml").write_text(CONFIG.format("".join(f'<Choice value="{name}"/>' for name in NAMES)))
    common = "--pool pool.npy --label-studio project.json --out tasks.json"
    labels = ("--label-config", "config.xml") if config else ()
    return main(["select", *common.split(), *labels, *map(str, options)])


def chosen() -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = json.loads(Path("tasks.json").read_text())
    return tasks


def some_answers(count: int = 25) -> Answers:
    return {(2 * row, 1): NAMES[(LABELLED + 2 * row) % CLASSES] for row in range(count)}


def test_it_chooses_what_a_label_file_with_the_same_answers_would() -> None:
    answers = some_answers()
    answers[5, 2] = None
    export(answers)
    label_file = [f"{row},,{label or 'skip'}" for (row, _), label in answers.items()]
    Path("out.csv").write_text("\n".join(["row,suggested,label", *label_file]) + "\n")
    assert select("--number", 5) == 0
    assert main(["select", "--pool", "pool.npy", "--classes", "names.txt", "--out", "out.csv", "--number", "5"]) == 0
    added = lines_of_label_file()[len(answers) :]
    assert [task["id"] - FIRST for task in chosen()] == [int(line["row"]) for line in added]
    predictions = [task["predictions"][0] for task in chosen()]
    assert [made["result"][0]["value"]["choices"] for made in predictions] == [[line["suggested"]] for line in added]
    assert [made["score"] for made in predictions] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert [made["task"] for made in predictions] == [task["id"] for task in chosen()]
    assert [task["meta"] for task in chosen()] == [{"page": task["id"] - FIRST} for task in chosen()]


def test_every_annotator_counts_and_probabilities_are_calibrated(data, capsys) -> None:
    pool = data[0].float()
    answers = some_answers()
    answers.update({(0, 2): "cat", (2, 2): None, (5, 2): None})
    export(answers)
    assert select("--number", 2, "--save", "m.safetensors") == 0
    printed = capsys.readouterr().out
    assert f"Answers: {len(answers) - 2}. Rows chosen: 2. tasks.json has the predictions" in printed
    assert "Rows with different labels: 1.\n  task 101: annotator 1 says ant, annotator 2 says cat\n" in printed
    told = [(row, NAMES.index(label)) for (row, _), label in answers.items() if label is not None]
    rows, labels = (torch.tensor(part) for part in zip(*told, strict=True))
    prior = LastLayerLaplace.untrained(pool, 3, 10.0, class_names=NAMES)
    model = LastLayerLaplace.load("m.safetensors")
    torch.testing.assert_close(model.mean, prior.condition_on(pool[rows], labels, "joint").mean)
    held_out = torch.arange(len(rows) - 1)  # without the second answer to row 0
    temperature = fit_temperature(prior, pool[rows[held_out]], labels[held_out])
    for task in chosen():
        row = task["id"] - FIRST
        assert row not in {answered for answered, _ in answers}
        shares = (model.predict_logits(pool[[row]]) / temperature).softmax(1)[0]
        assert task["predictions"][0]["result"][0]["score"] == pytest.approx(float(shares.max()), abs=1e-6)


def test_nothing_is_suggested_before_there_is_an_answer() -> None:
    export({})
    assert select("--number", 3) == 0
    assert [task["predictions"][0]["result"] for task in chosen()] == [[], [], []]


def test_classes_may_come_with_the_answers(capsys) -> None:
    export({(2, 1): "bee", (7, 1): "yak"})
    assert select("--number", 1, config=False) == 0
    assert "Classes so far: 2: bee, yak." in capsys.readouterr().out
    export({(2, 1): "bee"})
    assert select("--number", 1, config=False) == 0
    assert chosen()[0]["predictions"][0]["result"] == []


@pytest.mark.parametrize("config", [False, True])
def test_choices_may_look_like_numbers_and_commands(config: bool, capsys) -> None:
    """A choice is its name, in any order: three stars are not the fourth class."""
    stars = {"ant": "3", "bee": "1", "cat": "skip"}
    export({place: stars[name] for place, name in some_answers().items()})
    Path("stars.xml").write_text(CONFIG.format("".join(f'<Choice value="{name}"/>' for name in stars.values())))
    options = ("--label-config", "stars.xml") if config else ()
    assert select("--number", 2, "--save", "model", *options, config=False) == 0
    assert "Labels per class: " in capsys.readouterr().out
    names = LastLayerLaplace.load("model").class_names
    assert names is not None
    assert set(names) == set(stars.values())
    assert main(["predict", "--model", "model", "--pool", "pool.npy", "--out", "all.csv"]) == 0
    named = {name: number for number, name in enumerate(stars.values())}
    given = [named[line["class"]] for line in lines_of_label_file("all.csv")]
    expected = [(LABELLED + row) % CLASSES for row in range(ROWS)]
    assert sum(a == b for a, b in zip(given, expected, strict=True)) > 0.8 * ROWS


def test_a_part_of_the_tasks_will_do_where_rows_have_ids(capsys) -> None:
    Path("items.csv").write_text("id,text\n" + "".join(f"scan-{row},text {row}\n" for row in range(ROWS)))
    export(some_answers(36), rows=range(0, ROWS, 2), id="scan-{}")
    assert select("--number", 4, "--items", "items.csv") == 0
    assert "Rows chosen: 4. tasks.json has the tasks to import." in capsys.readouterr().out
    for task in chosen():
        row = int(task["data"]["id"].removeprefix("scan-"))
        assert row % 2 or row > 70
        assert task["data"]["text"] == (f"text of row {row}" if row % 2 == 0 else f"text {row}")
    np.save("pool.npy", np.load("pool.npy")[::-1])
    assert select("--number", 4, "--items", "items.csv") == 1
    assert "--pool has other features than before" in capsys.readouterr().err


def test_another_pool_is_an_error(capsys) -> None:
    export({})
    assert select() == 0
    np.save("pool.npy", np.load("pool.npy")[::-1])
    assert select() == 1
    assert "tasks.json was begun with another pool" in capsys.readouterr().err


def test_a_finished_pool_is_said_to_be_finished(capsys) -> None:
    export({(row, 1): NAMES[row % 3] if row else None for row in range(ROWS)} | {(1, 2): "cat"})
    assert select() == 0
    assert f"Answers: {ROWS}. Every row of the pool has an answer, 1 of them skip." in capsys.readouterr().out
    assert not Path("tasks.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "out.csv"), "--out must be a .json file that Label Studio imports, got out.csv"),
        (("--out", "project.json"), "--out must be another file than the export, got project.json"),
        (("--interactive",), "--interactive asks on the terminal: leave out --label-studio"),
        (("--annotators", "a.csv", "b.csv"), "--label-studio has the answers of all annotators: pass --out FILE.json"),
        (("--classes", "names.txt"), "--label-config has the classes: leave out --classes"),
        (("--control", "mood"), "a Choices tag with the name 'mood', got kind"),
        (
            ("--label-config", "nowhere.xml"),
            "--label-config must be a text file, got nowhere.xml: No such file",
        ),
        (("--label-studio", "nowhere.json"), "nowhere.json"),
        (("--label-studio", "names.txt"), "names.txt must be a JSON export of Label Studio, got no JSON"),
        (("--label-studio", "part.json"), f"a task for each of the {ROWS} rows of the pool, got 3: the pages of Label"),
    ],
)
def test_what_does_not_fit_is_explained(options: tuple[str, ...], message: str, capsys) -> None:
    export(some_answers(5))
    export({}, rows=range(3), path="part.json")
    before = Path("project.json").read_bytes()
    assert select(*options) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert Path("project.json").read_bytes() == before
    assert not Path("tasks.json").exists()


def test_a_choice_that_is_no_class_is_explained(capsys) -> None:
    export({(2, 1): "yak"})
    assert select("--classes", "names.txt", config=False) == 1
    assert "task 103: the choice must be a number from 0 to 2 or a name (ant, bee, cat), got 'yak'" in (
        capsys.readouterr().err
    )
    assert select("--classes", "names.txt", "--new-classes", config=False) == 0
    assert main(["select", "--pool", "pool.npy", "--label-config", "config.xml", "--out", "out.csv"]) == 1
    assert "--label-config needs --label-studio" in capsys.readouterr().err
