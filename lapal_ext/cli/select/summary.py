"""How far the labelling is: labels per class, right suggestions, the accuracy to expect, and when to stop."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from lapal_ext.cli.select.answers import Line, labels_of
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.start import Start
from lapal_ext.posterior.calibration import Calibration
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.selection.stopping import CHANGED, LAST, ExpectedAccuracy, changed_classes, expected_accuracy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WINDOW = 50  # answers whose suggestions are counted
_LEAST = 20  # answers before which shares say nothing
_LISTED = 8  # classes that a line names
_LEAST_TO_STOP = 50


class Checked(NamedTuple):
    """An answer for a row that had a suggestion."""

    label: int
    right: bool


class Summary(NamedTuple):
    """Figures of one run; None for what cannot be said yet."""

    labels: list[int]  # in the order of the file
    checked: list[Checked]
    accuracy: ExpectedAccuracy | None
    rest: int  # rows of the pool without a label, for which it is expected
    changed: float | None  # share of rows to which the last answers gave another class
    last: int  # number of those answers


def summarise(
    lines: Sequence[Line],
    start: Start,
    model: LastLayerLaplace,
    calibration: Calibration | None,
    pool: Tensor,  # [n, D], the rows in this process
    group: "ProcessGroup | None" = None,
) -> Summary:
    """Figures of the answers in these lines, of which ``model`` and ``calibration`` are; all processes call this."""
    labels = labels_of(line for line in lines if line.counts)
    answered = sorted({line.row for line in lines if line.label is not None})
    rest = start.pool_rows - len(answered)
    accuracy = changed = None
    if calibration is not None and len(labels) >= _LEAST and rest > 0 and calibration.error < float("inf"):
        accuracy = expected_accuracy(model, pool, calibration, answered, group)
    last = round(LAST * len(labels))
    if len(labels) >= _LEAST_TO_STOP:
        earlier = [line for line in lines if line.label is not None][:-last]
        changed = changed_classes(start.model(start.answers(earlier)), model, pool, group)
    return Summary(labels, checked(lines, start.classes), accuracy, rest, changed, last)


def checked(lines: Sequence[Line], classes: Classes) -> list[Checked]:
    """The answers for rows that had a suggestion, in the order of the lines."""
    suggested = [(line.label, line.suggested.strip()) for line in lines if line.label is not None and line.suggested]
    return [Checked(label, classes.number_of(text) == label) for label, text in suggested]


def texts(summary: Summary, classes: Classes) -> list[str]:
    """Sentences for the person who labels."""
    if len(summary.labels) < _LEAST:
        return []
    found = [_per_class(summary.labels, classes)]
    recent = summary.checked[-WINDOW:]
    if len(recent) >= _LEAST:
        found.append(_agreement(recent, classes))
    if summary.accuracy is not None:
        value, low, high = (f"{100 * share:.0f}" for share in summary.accuracy)
        rows = f"{summary.rest} row{'' if summary.rest == 1 else 's'} without a label"
        found.append(f"Expected accuracy on the {rows}: {value} % ({low} to {high} %).")
    if summary.changed is not None and summary.changed <= CHANGED:
        found.append(
            f"More labels are unlikely to pay: the last {summary.last} of {len(summary.labels)} changed the class of "
            f"{100 * summary.changed:.1f} % of the rows."
        )
    return found


def _per_class(labels: Sequence[int], classes: Classes) -> str:
    counts = Counter(labels)
    order = sorted(range(len(classes)), key=lambda number: counts[number])
    if len(order) <= _LISTED:
        return f"Labels per class: {', '.join(f'{classes.names[k]} {counts[k]}' for k in order)}."
    fewest = ", ".join(f"{classes.names[k]} {counts[k]}" for k in order[:_LISTED])
    return f"Labels per class: {fewest}, … up to {classes.names[order[-1]]} {counts[order[-1]]}."


def _agreement(recent: Sequence[Checked], classes: Classes) -> str:
    right = sum(one.right for one in recent)
    text = f"Suggestions that were right: {right} of the last {len(recent)}, of rows that the model is unsure about."
    total, wrong = Counter(one.label for one in recent), Counter(one.label for one in recent if not one.right)
    worst = sorted(wrong, key=lambda k: (total[k] - wrong[k]) / total[k])[:_LISTED]
    if worst:
        shares = ", ".join(f"{classes.names[k]} {total[k] - wrong[k]} of {total[k]}" for k in worst)
        text += f" Least often for {shares}."
    return text
