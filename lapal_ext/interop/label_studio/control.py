"""The tag that asks for the class: one ``Choices`` of a label config.

Source: https://labelstud.io/tags/choices
"""

import re
from typing import NamedTuple
from xml.etree import ElementTree as ET

from lapal_ext.errors import StorageError

_VARIABLE = re.compile(r"\$(\w+)")  # names a field of a task's data


class Control(NamedTuple):
    """A ``Choices`` tag.

    Attributes:
        name: of the tag, which results have as ``from_name``.
        to_name: the name of the tag that shows the text or the image.
        field: of a task's data, which that tag shows; None if it is not known, or not one field.
        classes: the choices in the order of the label config; None if they are not known, or differ between tasks.
    """

    name: str
    to_name: str
    field: str | None = None
    classes: tuple[str, ...] | None = None


def read_control(label_config: str, name: str | None = None) -> Control:
    """Read a ``Choices`` tag of a label config.

    Args:
        label_config: the XML text, as in Settings, Labeling Interface, Code.
        name: of the tag; it may be left out if there is one alone.

    Raises:
        TypeError: ``label_config`` is no text.
        StorageError: it is no XML, has no such tag, or its choices are not one level of distinct texts.
    """
    if not isinstance(label_config, str):
        raise TypeError(f"label_config must be the XML text of a label config, got {type(label_config).__name__}")
    try:
        root = ET.fromstring(label_config)
    except ET.ParseError as error:
        raise StorageError(f"label_config must be XML: {error}") from error
    tags = {tag.get("name", ""): tag for tag in root.iter("Choices")}
    if not tags:
        found = ", ".join(sorted({tag.tag for tag in root.iter() if tag.get("toName")})) or "none"
        raise StorageError(f"label_config must have a Choices tag, the only kind that is read, got {found}")
    if name is None and len(tags) > 1:
        raise StorageError(f"label_config has several Choices tags ({', '.join(tags)}): name one of them as control")
    name = next(iter(tags)) if name is None else name
    if name not in tags:
        raise StorageError(f"label_config must have a Choices tag with the name {name!r}, got {', '.join(tags)}")
    to_name = tags[name].get("toName", "").split(",")[0].strip()
    shown = next((tag for tag in root.iter() if tag.get("name") == to_name), None)
    if not name or shown is None:
        raise StorageError(
            f"label_config: a Choices tag must have a name, and in toName the name of another tag, got {name!r} and "
            f"{to_name!r}"
        )
    variable = _VARIABLE.fullmatch(shown.get("value", ""))
    return Control(name, to_name, variable and variable[1], _classes(tags[name], name))


def _classes(tag: ET.Element, name: str) -> tuple[str, ...] | None:
    if tag.get("value", "").startswith("$"):
        return None
    choices = list(tag.iter("Choice"))
    if any(len(list(choice.iter("Choice"))) > 1 for choice in choices):  # iter begins with the choice itself
        raise StorageError(f"label_config: {name!r} must not have choices within choices")
    names = [choice.get("alias") or choice.get("value") or "" for choice in choices]
    if not names or not all(names) or len(set(names)) < len(names):
        raise StorageError(f"label_config: each Choice of {name!r} must have a value of its own, got {names}")
    return tuple(names)
