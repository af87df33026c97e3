"""The tasks of a project and the answers to them, from JSON exports.

Source: https://labelstud.io/guide/export
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

from lapal_ext.entries import entry
from lapal_ext.errors import StorageError
from lapal_ext.interop.label_studio.annotations import Answer, control_of, field, read_annotation, time_of
from lapal_ext.interop.label_studio.control import Control, read_control
from lapal_ext.pool.row_ids import RowIds
from lapal_ext.validation.scalars import check_path

_TABLES = (".csv", ".tsv")


@dataclass(frozen=True)
class Tasks:
    """Tasks in the order of the rows of their features, and the answers to them.

    Attributes:
        exported: the tasks with all their fields, [N].
        rows: the row of each task, by its id.
        answers: the last one of each annotator to each row, in the order in which they were given.
        control: the tag that asks for the class.
    """

    exported: tuple[Mapping[str, Any], ...]
    rows: Mapping[int, int]
    answers: tuple[Answer, ...]
    control: Control

    @property
    def ids(self) -> tuple[int | None, ...]:
        """The id of the task of each row; None where the project does not have it yet."""
        return tuple(task.get("id") for task in self.exported)

    @property
    def data(self) -> tuple[Mapping[str, Any], ...]:
        """What each task shows."""
        return tuple(task["data"] for task in self.exported)

    def answer(self, annotation: Mapping[str, Any]) -> Answer:
        """Read an annotation that a webhook has sent.

        Raises:
            StorageError: it belongs to no task of the project, or is not one choice of ``control``.
        """
        number = field(annotation, "task", int, "annotation")
        if number not in self.rows:
            raise StorageError(f"annotation: task must be one of the export, got {number}: export the project again")
        return read_annotation(annotation, self.rows[number], self.control, f"task {number}")

    def for_pool(self, names: Sequence[str], data: Sequence[Mapping[str, Any]]) -> "Tasks":
        """The tasks of a pool whose rows have names, of which the project may have a part.

        The name of a task is the field ``id`` of its data, or else its own id. If several tasks have the name of a row,
        all their answers count, and the first task stands for the row.

        Args:
            names: of the rows, [N], distinct.
            data: of the task that a row gets if the project has none, [N].

        Raises:
            ValueError: the names are not distinct, or ``data`` has another length.
            StorageError: a task has none of the names, or ``data`` not what the label config shows.
        """
        known = RowIds(names, "names")
        if len(data) != len(known):
            raise ValueError(f"data must hold one task for each of {len(known)} names, got {len(data)}")
        found: dict[int, Mapping[str, Any]] = {}
        rows: dict[int, int] = {}
        for task in self.exported:
            name = str(task["data"].get("id", task["id"]))
            row = known.row_of(name)
            if row is None:
                raise StorageError(f"task {task['id']}: the pool has no row with the id {name!r}")
            rows[task["id"]] = row
            found.setdefault(row, task)
        exported = tuple(found.get(row, {"data": data[row]}) for row in range(len(known)))
        for row, task in enumerate(exported):
            _check_data(task, self.control, f"row {known.ids[row]!r} of the pool")
        moved = [answer._replace(row=rows[self.exported[answer.row]["id"]]) for answer in self.answers]
        return replace(self, exported=exported, rows=rows, answers=_last(moved))


@entry
def read_tasks(
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    label_config: str | None = None,
    control: str | None = None,
) -> Tasks:
    """Read the tasks and the answers of a project from its JSON export.

    Row i is the i-th task in ascending order of ids. Drafts are no answers. A cancelled annotation is a skip.

    Args:
        path: the file, or several, such as one for each round; no task may be in two of them. The pages of Label Studio
            export annotated tasks alone, ``/api/projects/ID/export?exportType=JSON&download_all_tasks=true`` all.
        label_config: the XML text of the labeling interface. It is needed as long as there is no annotation, and gives
            the classes their order.
        control: the name of the ``Choices`` tag; needed if there are several.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it is no JSON export, or an annotation has no single choice; the message names the file, the task
            and the field.
    """
    paths = [check_path("path", one) for one in ([path] if isinstance(path, (str, PathLike)) else path)]
    source = ", ".join(map(str, paths))
    loaded = [(task, f"{one}, task {task['id']}", number) for one in paths for number, task in enumerate(_load(one), 1)]
    loaded.sort(key=lambda entry: entry[0]["id"])
    for (task, name, number), (following, other, later) in pairwise(loaded):
        if task["id"] == following["id"]:
            raise StorageError(
                f"{name} (number {number} in its list) and {other} (number {later}) have the same id: export all tasks "
                "again, into one file"
            )
    tasks = [(task, name) for task, name, _ in loaded]
    annotations = [(note, row, place) for row, (task, place) in enumerate(tasks) for note in task["annotations"]]
    if label_config is None:
        tag = control_of(((note, place) for note, _, place in annotations), control, source)
    else:
        tag = read_control(label_config, control)
    for task, place in tasks:
        _check_data(task, tag, place)
    answers = [(time_of(note, place), read_annotation(note, row, tag, place)) for note, row, place in annotations]
    answers.sort(key=lambda timed: (timed[0], timed[1].annotation))
    return Tasks(
        tuple(task for task, _ in tasks),
        {task["id"]: row for row, (task, _) in enumerate(tasks)},
        _last(answer for _, answer in answers),
        tag,
    )


def _load(path: Path) -> list[dict[str, Any]]:
    try:
        tasks = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        kind = "CSV, which leaves out skipped tasks" if path.suffix.lower() in _TABLES else f"no JSON ({error})"
        raise StorageError(f"{path} must be a JSON export of Label Studio, got {kind}: export as JSON") from error
    if not isinstance(tasks, list):
        raise StorageError(f"{path} must hold a list of tasks, got {type(tasks).__name__}: export as JSON")
    for place, task in enumerate(tasks):
        if isinstance(task, dict) and "annotation_id" in task:
            raise StorageError(f"{path} is a JSON-MIN export, which leaves out skipped tasks: export as JSON")
        number = field(task, "id", int, f"{path}, task in place {place}")
        field(task, "data", dict, f"{path}, task {number}")
        field(task, "annotations", list, f"{path}, task {number}")
    return tasks


def _last(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """The last answer of each annotator to each row."""
    kept: dict[tuple[int, int], Answer] = {}
    for answer in answers:
        kept.pop((answer.row, answer.annotator), None)  # it stands where the later one was given
        kept[answer.row, answer.annotator] = answer
    return tuple(kept.values())


def _check_data(task: Mapping[str, Any], control: Control, place: str) -> None:
    if control.field is not None and control.field not in task["data"]:
        got = ", ".join(task["data"]) or "nothing"
        raise StorageError(f"{place}: data must have {control.field!r}, which the label config shows, got {got}")
