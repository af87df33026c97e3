"""Annotations: what one annotator said about one task, as exports and webhooks have it.

Source: https://labelstud.io/guide/export
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from lapal_ext.errors import StorageError
from lapal_ext.interop.label_studio.control import Control

CHOICES = "choices"  # type of a result, and the key of its value
_NOBODY = 0  # annotator of an annotation whose user was deleted; ids of users begin at 1


class Answer(NamedTuple):
    """What one annotator said about one task.

    Attributes:
        row: of the features.
        label: the name of the class; None if the annotator skipped the task.
        annotator: the id of the user.
        annotation: the id of the annotation.
    """

    row: int
    label: str | None
    annotator: int
    annotation: int


def read_annotation(annotation: object, row: int, control: Control, place: str) -> Answer:
    """The answer in an annotation; a cancelled one is a skip.

    Args:
        annotation: a JSON object.
        row: of its task.
        control: the tag whose choice counts; results of other tags do not.
        place: of the annotation, for errors.

    Raises:
        StorageError: it has no single choice, or one that the label config does not have.
    """
    number: int = field(annotation, "id", int, f"{place}, annotation")
    place = f"{place}, annotation {number}"
    assert isinstance(annotation, dict)
    annotator = _annotator(annotation, place)
    if annotation.get("was_cancelled"):
        return Answer(row, None, annotator, number)
    chosen = []
    for result in field(annotation, "result", list, place):
        if not isinstance(result, dict) or result.get("from_name") != control.name:
            continue
        if result.get("type") != CHOICES:
            raise StorageError(f"{place}: {control.name!r} must have the type {CHOICES}, got {result.get('type')!r}")
        chosen += field(field(result, "value", dict, place), CHOICES, list, place)
    if len(chosen) != 1 or not isinstance(chosen[0], str):
        raise StorageError(
            f"{place}: result must have one choice of {control.name!r}, got {chosen or 'none'}: correct it in Label "
            "Studio, or skip the task there"
        )
    if control.classes is not None and chosen[0] not in control.classes:
        raise StorageError(
            f"{place}: the label config does not have the choice {chosen[0]!r}, only {', '.join(control.classes)}"
        )
    return Answer(row, chosen[0], annotator, number)


def control_of(annotations: Iterable[tuple[object, str]], name: str | None, source: str) -> Control:
    """The tag that annotations answer; each of them comes with its place, for errors.

    Raises:
        StorageError: there are several tags and no ``name``, or none.
    """
    found: dict[str, Control] = {}
    others: set[str] = set()
    for annotation, place in annotations:
        for result in field(annotation, "result", list, place):
            kind = field(result, "type", str, place)
            if kind != CHOICES:
                others.add(kind)
                continue
            tag = field(result, "from_name", str, place)
            found.setdefault(tag, Control(tag, field(result, "to_name", str, place)))
    if name is None and len(found) > 1:
        raise StorageError(f"{source} has choices of several tags ({', '.join(found)}): name one of them as control")
    if not found or (name is not None and name not in found):
        wanted = "of a Choices tag" if name is None else f"of the Choices tag {name!r}"
        got = ", ".join([*found, *sorted(others)]) or "no annotation"
        raise StorageError(f"{source} must have an annotation {wanted}, or give the label config; got {got}")
    return found[next(iter(found)) if name is None else name]


def time_of(annotation: object, place: str) -> datetime:
    """When an annotation was made or changed.

    Raises:
        StorageError: ``updated_at`` is missing, or no time.
    """
    text: str = field(annotation, "updated_at", str, f"{place}, annotation")
    try:
        time = datetime.fromisoformat(text.replace("Z", "+00:00"))  # Python 3.10 does not read Z
    except ValueError as error:
        raise StorageError(f"{place}, annotation: updated_at must be a time, got {text!r}") from error
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)


def field(holder: object, name: str, kind: type, place: str) -> Any:
    """A field of a JSON object.

    Raises:
        StorageError: it is missing or of another type, or ``holder`` is no object.
    """
    if not isinstance(holder, dict):
        raise StorageError(f"{place} must be an object with {name}, got {type(holder).__name__}")
    if name not in holder:
        raise StorageError(f"{place}: {name} is missing")
    if not isinstance(holder[name], kind) or isinstance(holder[name], bool):
        raise StorageError(f"{place}: {name} must be of type {kind.__name__}, got {type(holder[name]).__name__}")
    return holder[name]


def _annotator(annotation: Mapping[str, Any], place: str) -> int:
    """The id of the user, who is a number or, in other exports, an object."""
    user = annotation.get("completed_by", place)
    if user is None:
        return _NOBODY
    holder, name = (user, "id") if isinstance(user, dict) else (annotation, "completed_by")
    number: int = field(holder, name, int, place)
    return number
