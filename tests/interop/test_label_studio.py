"""Tasks and answers from exports of Label Studio, and what is written for it; without Label Studio."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lapal_ext.errors import StorageError
from lapal_ext.interop.label_studio import Tasks, predictions, read_control, read_tasks, write_tasks
from tests.interop.label_studio_export import CLASSES, CONFIG, choice, export, note, task

SKIPPED = {"was_cancelled": True}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def answers(*tasks: dict[str, Any], config: str | None = CONFIG) -> list[tuple[int, str | None, int]]:
    return [answer[:3] for answer in read_tasks(export(list(tasks)), config).answers]


class TestReading:
    def test_rows_follow_the_ids_of_the_tasks(self) -> None:
        read = read_tasks(export([task(103), task(101, note(1, "cash")), task(102)]), CONFIG)
        assert read.ids == (101, 102, 103)
        assert [shown["text"] for shown in read.data] == ["text 101", "text 102", "text 103"]
        assert read.answers == ((0, "cash", 1, 1),)
        assert read.control == ("topic", "text", "text", CLASSES)

    def test_answers_come_in_the_order_in_which_they_were_given_or_changed(self) -> None:
        tasks = task(101, note(1, "cash", second=50)), task(102, note(2, "card")), task(103, note(3, "loan", second=1))
        assert answers(*tasks) == [(2, "loan", 1), (1, "card", 1), (0, "cash", 1)]

    @pytest.mark.parametrize("kept", [(), ("card",)])
    def test_a_cancelled_annotation_is_a_skip_whatever_it_holds(self, kept: tuple[str, ...]) -> None:
        assert answers(task(101, note(1, *kept, **SKIPPED))) == [(0, None, 1)]

    def test_each_annotator_has_one_answer_which_is_the_last(self) -> None:
        notes = note(1, "card", user=5), note(2, "cash", user=6), note(3, "loan", user=5)
        assert answers(task(101, *notes)) == [(0, "cash", 6), (0, "loan", 5)]
        assert answers(task(101, *notes, note(4, user=5, **SKIPPED))) == [(0, "cash", 6), (0, None, 5)]

    @pytest.mark.parametrize(("user", "annotator"), [(7, 7), ({"id": 8, "email": "a@b.c"}, 8), (None, 0)])
    def test_annotators_are_numbers_objects_or_deleted(self, user: object, annotator: int) -> None:
        assert answers(task(101, note(1, "card", user=user))) == [(0, "card", annotator)]

    def test_other_tags_and_drafts_are_no_answers(self) -> None:
        comment = {"from_name": "why", "to_name": "text", "type": "textarea", "value": {"text": ["?"]}}
        drafted = {**task(102), "drafts": [{"id": 1, "result": [choice("card")]}]}
        assert answers(task(101, note(1, comment, "loan")), drafted) == [(0, "loan", 1)]

    def test_without_a_label_config_the_annotations_name_the_tag(self) -> None:
        read = read_tasks(export([task(101, note(1, "anything")), task(102, note(2, **SKIPPED))]))
        assert read.control == ("topic", "text", None, None)
        assert [answer.label for answer in read.answers] == ["anything", None]

    def test_control_chooses_one_of_several_tags(self) -> None:
        export([task(101, note(1, choice("bad", name="mood"), choice("card")))])
        assert read_tasks("project.json", control="mood").answers[0].label == "bad"
        assert read_tasks("project.json", CONFIG).answers[0].label == "card"

    def test_rounds_may_have_files_of_their_own(self) -> None:
        files = [export([task(102, note(2, "cash"))], "2.json"), export([task(101, note(1, "card"))], "1.json")]
        assert [answer[:2] for answer in read_tasks(files, CONFIG).answers] == [(0, "card"), (1, "cash")]
        export([task(103), task(101)], "3.json")
        message = (
            r"1.json, task 101 \(number 1 in its list\) and 3.json, task 101 \(number 2\) have the same id: export"
        )
        with pytest.raises(StorageError, match=message):
            read_tasks(["1.json", "2.json", "3.json"], CONFIG)

    def test_a_webhook_sends_annotations_of_known_tasks(self) -> None:
        read = read_tasks(export([task(101), task(102)]), CONFIG)
        assert read.answer({**note(9, "loan", user=3), "task": 102}) == (1, "loan", 3, 9)
        with pytest.raises(StorageError, match="task must be one of the export, got 103"):
            read.answer({**note(9, "loan"), "task": 103})


def changed(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> list[dict[str, Any]]:
    one = task(101, note(1, "card"))
    change(one, one["annotations"][0])
    return [task(100), one]


REFUSED: dict[str, tuple[Any, str]] = {
    "no list": ({"tasks": []}, "project.json must hold a list of tasks, got dict"),
    "JSON-MIN": ([{"id": 1, "text": "a", "topic": "card", "annotation_id": 2}], "is a JSON-MIN export, which leaves"),
    "no object": ([3], "project.json, task in place 0 must be an object with id, got int"),
    "no id": (changed(lambda t, _: t.pop("id")), "project.json, task in place 1: id is missing"),
    "no data": (changed(lambda t, _: t.pop("data")), "project.json, task 101: data is missing"),
    "no annotations": (changed(lambda t, _: t.pop("annotations")), "project.json, task 101: annotations is missing"),
    "twice": ([task(101), task(101)], r"101 \(number 1 in its list\) and project.json, task 101 \(number 2\)"),
    "no field to show": (changed(lambda t, _: t["data"].pop("text")), "task 101: data must have 'text', .*got nothing"),
    "id of another type": (changed(lambda _, n: n.update(id="1")), "101, annotation: id must be of type int, got str"),
    "no result": (changed(lambda _, n: n.pop("result")), "task 101, annotation 1: result is missing"),
    "no annotator": (changed(lambda _, n: n.pop("completed_by")), "task 101, annotation 1: completed_by is missing"),
    "no time": (changed(lambda _, n: n.update(updated_at="today")), "101, annotation: updated_at must be a time"),
    "no choice": (
        changed(lambda _, n: n.update(result=[])),
        "annotation 1: result must have one choice of 'topic', got",
    ),
    "of another tag": (
        changed(lambda _, n: n.update(result=[choice("card", name="mood")])),
        "annotation 1: result must have one choice of 'topic', got none: correct it in Label Studio, or skip",
    ),
    "several": (changed(lambda _, n: n.update(result=[choice("card", "cash")])), r"got \['card', 'cash'\]: correct it"),
    "twice chosen": (changed(lambda _, n: n["result"].append(choice("cash"))), r"got \['card', 'cash'\]: correct it"),
    "nested": (changed(lambda _, n: n.update(result=[choice(["a", "b"])])), r"got \[\['a', 'b'\]\]: correct it"),
    "another type": (
        changed(lambda _, n: n["result"][0].update(type="labels")),
        "must have the type choices, got 'lab",
    ),
    "no value": (changed(lambda _, n: n["result"][0].pop("value")), "task 101, annotation 1: value is missing"),
    "unknown class": (changed(lambda _, n: n.update(result=[choice("Card")])), "does not have the choice 'Card', only"),
}


class TestRefused:
    @pytest.mark.parametrize(("tasks", "text"), REFUSED.values(), ids=REFUSED)
    def test_what_is_wrong_is_named(self, tasks: Any, text: str) -> None:
        with pytest.raises(StorageError, match=text):
            read_tasks(export(tasks), CONFIG)

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("a.json", "[{", "a.json must be a JSON export of Label Studio, got no JSON .*: export as JSON"),
            ("a.json", "[" * 100_000, "a.json must be a JSON export"),
            ("a.csv", "id,text,topic", "got CSV, which leaves out skipped tasks: export as JSON"),
        ],
    )
    def test_what_is_no_json(self, name: str, content: str, text: str) -> None:
        Path(name).write_text(content)
        with pytest.raises(StorageError, match=text):
            read_tasks(name, CONFIG)

    @pytest.mark.parametrize(
        ("tasks", "control", "text"),
        [
            (
                [task(101)],
                None,
                "must have an annotation of a Choices tag, or give the label config; got no annotation",
            ),
            ([task(101, note(1, choice("a", name="b"), "card"))], None, r"several tags \(b, topic\): name one"),
            ([task(101, note(1, "card"))], "mood", "an annotation of the Choices tag 'mood', .* got topic"),
            ([task(101, note(1, {"type": "rating", "from_name": "a"}))], None, "got rating"),
        ],
    )
    def test_a_tag_that_is_not_known(self, tasks: Any, control: str | None, text: str) -> None:
        with pytest.raises(StorageError, match=text):
            read_tasks(export(tasks), control=control)

    @pytest.mark.parametrize(
        ("config", "text"),
        [
            ("<View>", "label_config must be XML"),
            ('<View><Rating name="a" toName="t"/></View>', "must have a Choices tag, the only kind .*, got Rating"),
            (
                CONFIG.replace('toName="text" choice', 'toName="image" choice'),
                "name of another tag, got 'topic' and 'im",
            ),
            (CONFIG.replace('"cash"', '"card"'), r"each Choice of 'topic' must have a value of its own, got"),
            (CONFIG.replace('"cash"/>', '"cash"><Choice value="a"/></Choice>'), "must not have choices within choices"),
            (CONFIG.replace("TextArea", "Choices"), r"several Choices tags \(topic, why\): name one of them"),
        ],
    )
    def test_a_label_config_that_does_not_fit(self, config: str, text: str) -> None:
        with pytest.raises(StorageError, match=text):
            read_control(config)

    def test_a_label_config_without_the_tag(self) -> None:
        with pytest.raises(StorageError, match="a Choices tag with the name 'mood', got topic"):
            read_control(CONFIG, "mood")
        with pytest.raises(TypeError, match="label_config must be the XML text"):
            read_control(Path("config.xml"))

    def test_choices_of_the_data_are_not_known(self) -> None:
        assert read_control(CONFIG.replace('toName="text" choice', 'toName="text" value="$all" choice')).classes is None


@pytest.fixture
def tasks() -> Tasks:
    return read_tasks(export([task(101), task(102), task(103)]), CONFIG)


SHARES = np.array([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])


class TestWriting:
    def test_the_score_is_the_place_and_the_probability_that_of_the_class(self, tasks: Tasks) -> None:
        first, second = predictions(tasks, [2, 0], SHARES, model_version="3rd round")
        assert (first["task"], first["score"], first["model_version"]) == (103, 0.5, "3rd round")
        assert (second["task"], second["score"]) == (101, 1.0)
        assert [p["result"][0]["value"]["choices"] for p in (first, second)] == [["cash"], ["loan"]]
        assert [p["result"][0]["score"] for p in (first, second)] == [0.5, 0.75]
        assert (first["result"][0]["from_name"], first["result"][0]["to_name"]) == ("topic", "text")

    def test_scores_rise_strictly(self, tasks: Tasks) -> None:
        scores = [p["score"] for p in predictions(tasks, [1, 2, 0], None)]
        assert scores == sorted(set(scores))
        assert all(0.0 < score <= 1.0 for score in scores)
        assert all(p["result"] == [] for p in predictions(tasks, [1], None))

    def test_all_other_fields_are_kept(self, tasks: Tasks) -> None:
        write_tasks("out.json", tasks, torch.tensor([2, 0]), torch.from_numpy(SHARES))
        written = json.loads(Path("out.json").read_text(encoding="utf-8"))
        for row, entry, made in zip([2, 0], written, predictions(tasks, [2, 0], SHARES), strict=True):
            assert entry == {**tasks.exported[row], "predictions": [made]}
            assert entry["meta"] == {"origin": "bank"}

    @pytest.mark.parametrize(
        ("change", "error", "text"),
        [
            ({"rows": [0, 0]}, ValueError, "rows must not hold duplicates, got 0"),
            ({"rows": [0, 3]}, ValueError, r"rows must lie in \[0, 3\), the rows of the tasks, got 3"),
            ({"rows": [[0, 1]]}, TypeError, "rows must hold integers"),
            ({"probabilities": SHARES[:1]}, ValueError, r"probabilities must have shape \(2, 3\), got \(1, 3\)"),
            ({"probabilities": SHARES * np.nan}, ValueError, "probabilities must be finite"),
            ({"probabilities": 2 * SHARES}, ValueError, r"probabilities must lie in \[0, 1\], got 0.25 to 1.5"),
            ({"classes": ["card", "cash", "cheque"]}, ValueError, "choices of the label config, got 'cheque'"),
            ({"classes": ["card"]}, ValueError, r"probabilities must have shape \(2, 1\)"),
            ({"model_version": 3}, TypeError, "model_version must be a str, got int"),
        ],
        ids=str,
    )
    def test_what_is_wrong_is_named_and_the_file_stays(
        self, tasks: Tasks, change: dict[str, Any], error: type[Exception], text: str
    ) -> None:
        Path("out.json").write_text("before")
        arguments: dict[str, Any] = {"rows": [2, 0], "probabilities": SHARES}
        with pytest.raises(error, match=text):
            write_tasks("out.json", tasks, **(arguments | change))
        assert Path("out.json").read_text() == "before"

    def test_classes_are_needed_where_the_label_config_is_not_known(self) -> None:
        tasks = read_tasks(export([task(101, note(1, "card")), task(102)]))
        with pytest.raises(ValueError, match="classes must be given, since the label config was not"):
            predictions(tasks, [1], [[0.5, 0.5]])
        made = predictions(tasks, [1], np.array([[0.25, 0.75]]), ["card", "cash"])
        assert made[0]["result"][0]["value"]["choices"] == ["cash"]


class TestPool:
    """Tasks by the names of rows, of which the project has a part."""

    NAMES = ("a", "b", "007", "102")
    DATA = tuple({"id": name, "text": f"text of {name}"} for name in NAMES)

    def test_tasks_find_their_rows(self) -> None:
        notes = note(1, "card"), note(2, "cash"), note(3, "loan")
        exported = [task(101, notes[0], id=7), task(102, notes[1]), task(103, notes[2], id="a")]
        placed = read_tasks(export(exported), CONFIG).for_pool(self.NAMES, self.DATA)
        assert placed.ids == (103, None, 101, 102)
        assert [answer[:2] for answer in placed.answers] == [(2, "card"), (3, "cash"), (0, "loan")]
        assert placed.answer({**note(9, "cash"), "task": 101}).row == 2
        write_tasks("out.json", placed, [1, 3], None)
        new, old = json.loads(Path("out.json").read_text())
        assert new["data"] == self.DATA[1]
        assert "task" not in new["predictions"][0]
        assert old["meta"] == {"origin": "bank"}
        assert old["predictions"][0]["task"] == 102

    def test_a_row_may_have_been_imported_twice(self) -> None:
        exported = [
            task(101, note(1, "card", user=1), id="a"),
            task(105, note(2, "cash"), note(3, "loan", user=2), id="a"),
        ]
        placed = read_tasks(export(exported), CONFIG).for_pool(self.NAMES, self.DATA)
        assert placed.ids[0] == 101
        assert [answer[:3] for answer in placed.answers] == [(0, "cash", 1), (0, "loan", 2)]

    def test_what_does_not_fit_is_named(self) -> None:
        tasks = read_tasks(export([task(101, id="x")]), CONFIG)
        with pytest.raises(StorageError, match="task 101: the pool has no row with the id 'x'"):
            tasks.for_pool(self.NAMES, self.DATA)
        with pytest.raises(ValueError, match="data must hold one task for each of 4 names, got 3"):
            tasks.for_pool(self.NAMES, self.DATA[:3])
        with pytest.raises(ValueError, match="both rows have the id 'a'"):
            tasks.for_pool(["a", "a"], self.DATA[:2])
        with pytest.raises(StorageError, match=r"row 'y' of the pool: data must have 'text', .* got id"):
            tasks.for_pool(["x", "y"], [{"id": "x"}, {"id": "y"}])
