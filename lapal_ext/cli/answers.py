"""The label file: what ``lapal-ext select`` asks for, and what people answer.

A CSV file with the columns ``row`` (of the pool, from zero), ``utility`` (when it was picked) and ``label``: the number
or the name of a class, ``skip``, or nothing where nobody has answered yet. Any spreadsheet reads and writes it. Lines
and further columns stay as they are, in their order.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lapal_ext.atomic_file import replace_file
from lapal_ext.cli.errors import CommandError

COLUMNS = ("row", "utility", "label")
SKIP = "skip"


class Line(NamedTuple):
    """One row of the pool in a label file."""

    row: int
    utility: str = ""
    label: int | None = None  # None where it was skipped or waits
    skipped: bool = False
    others: Mapping[str, str] = {}  # further columns

    @property
    def waits(self) -> bool:
        """Whether nobody has answered yet."""
        return self.label is None and not self.skipped


def read(path: Path, pool_rows: int, class_names: Sequence[str]) -> list[Line]:
    """Read a label file; one that does not exist holds nothing.

    Args:
        path: of the file.
        pool_rows: N; rows must lie in [0, N).
        class_names: names that a label may have beside its number.

    Raises:
        CommandError: a line that is not understood; the message has its number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a mark
            reader = csv.DictReader(file)
            if missing := [name for name in ("row", "label") if name not in (reader.fieldnames or ())]:
                raise CommandError(f"{path} must have the columns row and label, {' and '.join(missing)} is missing")
            numbered = [(reader.line_num, line) for line in reader]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise CommandError(f"{path} is no CSV file in UTF-8: {error}") from error
    lines: dict[int, Line] = {}
    for number, values in numbered:
        line = _parse(values, pool_rows, class_names, place=f"{path}, line {number}")
        if line.row in lines:
            raise CommandError(f"{path}, line {number}: row {line.row} stands there twice")
        lines[line.row] = line
    return list(lines.values())


def _parse(values: Mapping[str, str | None], pool_rows: int, class_names: Sequence[str], place: str) -> Line:
    if None in values:  # where csv puts what is beyond the last column
        raise CommandError(f"{place} has more cells than the first line has columns")
    try:
        row = int(values["row"] or "")
    except ValueError:
        row = -1
    if not 0 <= row < pool_rows:
        raise CommandError(f"{place}: row must be a whole number in [0, {pool_rows}), got {values['row']!r}")
    text = (values["label"] or "").strip()
    label = class_number(text, class_names)
    skipped = label is None and text == SKIP
    if text and label is None and not skipped:
        allowed = describe_classes(class_names)
        raise CommandError(f"{place}: label must be {allowed}, {SKIP} or nothing, got {text!r}")
    others = {name: value or "" for name, value in values.items() if name not in COLUMNS}
    return Line(row, values.get("utility") or "", label, skipped, others)


def class_number(text: str, class_names: Sequence[str]) -> int | None:
    """Class that a text names, by name or by number; None where it names none."""
    if text in class_names:
        return class_names.index(text)
    if text.isascii() and text.isdigit() and int(text) < len(class_names):
        return int(text)
    return None


def describe_classes(class_names: Sequence[str]) -> str:
    """What may be typed for a label, for messages."""
    numbers = f"a number from 0 to {len(class_names) - 1}"
    named = [name for number, name in enumerate(class_names) if name != str(number)]
    return f"{numbers} or a name ({', '.join(named[:5])}{', …' if len(named) > 5 else ''})" if named else numbers


def write(path: Path, lines: Sequence[Line], class_names: Sequence[str]) -> None:
    """Write a label file, whole or not at all.

    Raises:
        CommandError: the file cannot be written.
    """
    columns = [*COLUMNS, *dict.fromkeys(name for line in lines for name in line.others)]

    def fill(scratch: Path) -> None:
        with scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")  # for text editors
            writer.writeheader()
            for line in lines:
                label = SKIP if line.skipped else "" if line.label is None else class_names[line.label]
                writer.writerow({"row": line.row, "utility": line.utility, "label": label, **line.others})

    try:
        replace_file(path, fill)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from error
