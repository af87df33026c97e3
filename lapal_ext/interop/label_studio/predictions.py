"""Predictions and scores, by which Label Studio asks for tasks in a given order.

Source: https://labelstud.io/guide/predictions
"""

import json
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch

from lapal_ext.atomic_file import replace_file
from lapal_ext.entries import entry
from lapal_ext.interop.label_studio.annotations import CHOICES
from lapal_ext.interop.label_studio.control import Control
from lapal_ext.interop.label_studio.tasks import Tasks
from lapal_ext.validation.arrays import Array, Rows
from lapal_ext.validation.scalars import check_path
from lapal_ext.validation.tensors import (
    as_dense,
    as_labels,
    check_distinct,
    check_finite,
    check_index_range,
    shape_text,
)

_VERSION = "lapal_ext"


@entry
def predictions(
    tasks: Tasks,
    rows: Rows,  # [k]
    probabilities: Array | None,  # [k, C]
    classes: Sequence[str] | None = None,  # [C]
    model_version: str = _VERSION,
) -> list[dict[str, Any]]:  # [k]
    """Make predictions of the likeliest classes, for ``/api/projects/ID/import/predictions``.

    The uncertainty sampling of Label Studio asks first for the task whose prediction has the lowest ``score``. What a
    row of a batch brings depends on the rows before it, so that no number of one row alone has this order. Therefore
    the score is the place in the batch: t / k for the t-th of k rows. The probability of the class is the ``score`` of
    the result.

    Args:
        tasks: of the project.
        rows: to ask for, in this order.
        probabilities: of the classes, in [0, 1]; None to suggest no class, as long as nothing has a label.
        classes: names of the classes; by default those of the label config.
        model_version: Label Studio compares the predictions of one version, which the settings of the project name.
            Delete those of an earlier order, or give each order its own version.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """
    if not isinstance(model_version, str):
        raise TypeError(f"model_version must be a str, got {type(model_version).__name__}")
    numbers = as_labels("rows", rows, torch.device("cpu"), rows=True)
    if numbers.dim() != 1:
        raise ValueError(f"rows must have shape (k,), got {shape_text(numbers.shape)}")
    check_index_range("rows", numbers, len(tasks.exported), f"[0, {len(tasks.exported)}), the rows of the tasks")
    check_distinct("rows", numbers)
    results = _results(tasks.control, len(numbers), probabilities, classes)
    ids = tasks.ids
    made = []
    for place, (row, result) in enumerate(zip(numbers.tolist(), results, strict=True), start=1):
        prediction = {"model_version": model_version, "score": place / len(numbers), "result": result}
        made.append(prediction if ids[row] is None else {"task": ids[row], **prediction})
    return made


def _results(
    control: Control,
    count: int,
    probabilities: Array | None,  # [k, C]
    classes: Sequence[str] | None,  # [C]
) -> list[list[dict[str, Any]]]:  # [k]
    """The likeliest class of each row, as a choice of the tag."""
    if probabilities is None:
        return [[] for _ in range(count)]
    known = control.classes
    names = known if classes is None else tuple(classes)
    if names is None:
        raise ValueError("classes must be given, since the label config was not")
    if known is not None and (unknown := set(names) - set(known)):
        raise ValueError(f"classes must be choices of the label config, got {', '.join(map(repr, sorted(unknown)))}")
    shares = as_dense("probabilities", probabilities)
    if shares.shape != (count, len(names)):
        raise ValueError(f"probabilities must have shape ({count}, {len(names)}), got {shape_text(shares.shape)}")
    check_finite("probabilities", shares)
    if count > 0 and not 0.0 <= float(shares.min()) <= float(shares.max()) <= 1.0:
        raise ValueError(f"probabilities must lie in [0, 1], got {float(shares.min()):g} to {float(shares.max()):g}")
    return [
        [
            {
                "id": _VERSION,  # of a region, distinct within a prediction
                "from_name": control.name,
                "to_name": control.to_name,
                "type": CHOICES,
                "value": {CHOICES: [names[values.index(max(values))]]},
                "score": max(values),
            }
        ]
        for values in shares.tolist()
    ]


@entry
def write_tasks(
    path: str | PathLike[str],
    tasks: Tasks,
    rows: Rows,  # [k]
    probabilities: Array | None,  # [k, C]
    classes: Sequence[str] | None = None,  # [C]
    model_version: str = _VERSION,
) -> None:
    """Write the tasks of these rows with their predictions, in this order, as a file that Label Studio imports.

    Arguments and errors are those of ``predictions``. All other fields of the tasks are written as they were exported.
    An import makes new tasks. A project that has the tasks takes the predictions alone.

    Raises:
        OSError: the file cannot be written; one that exists stays as it is.
    """
    path = check_path("path", path)
    made = predictions(tasks, rows, probabilities, classes, model_version)
    # In an export the predictions of a task are their ids, which an import refuses.
    chosen = [{**tasks.exported[int(row)], "predictions": [made[place]]} for place, row in enumerate(rows)]
    text = json.dumps(chosen, ensure_ascii=False, indent=1)
    replace_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
