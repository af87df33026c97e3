"""The label file: the rows that ``lapal-ext select`` chooses, and the answers of annotators.

A CSV file with the columns ``row`` (of the pool, from zero), ``utility`` (when it was picked) and ``label``: the number
or the name of a class, ``skip``, or nothing if there is no answer yet. Spreadsheets read and write it, with commas,
semicolons or tabs. Further columns are kept.

Rows are numbers, so the answers belong to one pool, in one order. The file ``out.csv.pool.json`` beside ``out.csv``
holds the checksum of this pool (``pool/checksum.py`` says what it compares). It is a file of its own because people
edit, sort and filter the label file with programs that would show, change or drop a line or column of that kind.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lapal_ext.atomic_file import replace_file
from lapal_ext.cli.errors import CommandError

if TYPE_CHECKING:
    from lapal_ext.pool.checksum import PoolChecksum

COLUMNS = ("row", "utility", "label")
SKIP, UNDO, QUIT = "skip", "undo", "quit"
COMMANDS = (SKIP, UNDO, QUIT)  # what may be typed in place of a label; no class may have such a name
SUFFIXES = (".csv", ".tsv", ".txt")
_NUMBER = re.compile(r"([0-9]{1,9})(\.0+)?")  # spreadsheets turn integers into floats in columns with gaps


class Line(NamedTuple):
    """One row of the pool in a label file."""

    row: int
    utility: str = ""
    label: int | None = None  # None if the row is skipped or has no answer
    skipped: bool = False
    others: Mapping[str, str] = {}  # further columns

    @property
    def waits(self) -> bool:
        """Whether the row has no answer yet."""
        return self.label is None and not self.skipped


class LabelFile:
    """A label file that is read once and written many times, with the same separator, columns and byte order mark.

    Args:
        path: of the file; one that does not exist counts as empty.
        pool_rows: N; rows must lie in [0, N).
        class_names: names that a label may have besides its number.
        pool: checksum of the pool, which is compared with the one beside the file, and written there; None if it is
            not known.

    Raises:
        CommandError: a line is invalid; the message has its number. Or the file belongs to another pool.
    """

    def __init__(
        self, path: Path, pool_rows: int, class_names: Sequence[str], pool: "PoolChecksum | None" = None
    ) -> None:
        self.path = path
        self._class_names = class_names
        self._content = self._on_disk()
        self._columns, self._delimiter, self._encoding = list(COLUMNS), ",", "utf-8"
        self.lines: list[Line] = []
        self._pool = pool
        if self._content is not None:
            if len(self._content.strip().splitlines()) > 1:
                self._check_pool()
            self._parse(self._content, pool_rows)

    def write(self, lines: Sequence[Line]) -> None:
        """Replace the lines of the file; after an error it is unchanged.

        Raises:
            CommandError: the file cannot be written, or was changed since it was read.
        """
        if self._on_disk() != self._content:
            raise CommandError(
                f"{self.path} was changed by another program meanwhile and is not overwritten: run the command again"
            )
        columns = list(dict.fromkeys([*self._columns, *COLUMNS, *(name for line in lines for name in line.others)]))

        def fill(scratch: Path) -> None:
            with scratch.open("w", newline="", encoding=self._encoding) as file:
                writer = csv.DictWriter(  # one character at the end of a line, for text editors
                    file, columns, restval="", delimiter=self._delimiter, lineterminator="\n"
                )
                writer.writeheader()
                for line in lines:
                    label = SKIP if line.skipped else "" if line.label is None else self._class_names[line.label]
                    writer.writerow({"row": line.row, "utility": line.utility, "label": label, **line.others})

        try:
            self._record_pool()  # first: answers without a checksum would be accepted for any pool
            replace_file(self.path, fill)
        except OSError as error:
            raise CommandError(f"cannot write {self.path}: {error.strerror}") from error
        self._content = self._on_disk()
        self.lines = list(lines)

    @property
    def _record(self) -> Path:
        return self.path.with_name(f"{self.path.name}.pool.json")

    def _check_pool(self) -> None:
        """Raise CommandError if a checksum beside the file says that its rows are those of another pool."""
        if self._pool is None or not self._record.exists():
            return
        from lapal_ext.pool.checksum import PoolChecksum

        go_on = f"To use the answers in {self.path} with this pool all the same, delete {self._record}."
        try:
            saved = PoolChecksum(**json.loads(self._record.read_bytes()))
            difference = saved.difference(self._pool)
        except (ValueError, TypeError, AttributeError) as error:
            raise CommandError(f"{self._record} is damaged, or no checksum of a pool. {go_on}") from error
        except OSError as error:
            raise CommandError(f"cannot read {self._record}: {error.strerror}") from error
        if difference is not None:
            raise CommandError(
                f"{self.path} was begun with another pool: --pool {difference}, so that its row numbers mean other "
                f"rows. Pass the pool that it was begun with, in the same order, or another --out. {go_on}"
            )

    def _record_pool(self) -> None:
        if self._pool is None:
            return
        text = json.dumps(self._pool._asdict(), indent=1) + "\n"
        if not self._record.exists() or self._record.read_text(encoding="utf-8", errors="replace") != text:
            replace_file(self._record, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def _on_disk(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CommandError(f"cannot read {self.path}: {error.strerror}") from error

    def _parse(self, content: bytes, pool_rows: int) -> None:
        if content.startswith(b"\xef\xbb\xbf"):
            self._encoding = "utf-8-sig"  # with the byte order mark by which Excel recognises UTF-8
        try:
            # A carriage return within a cell would not be quoted when it is written again.
            text = content.decode(self._encoding).replace("\r\n", "\n").replace("\r", "\n")
        except UnicodeDecodeError as error:
            raise CommandError(f"{self.path} is no CSV file in UTF-8: {error}") from error
        first = text.partition("\n")[0]
        self._delimiter = next((mark for mark in ",;\t" if mark in first), ",")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=self._delimiter, strict=True)
        try:
            self._columns = [name.strip() for name in reader.fieldnames or ()]
            numbered = [(reader.line_num, values) for values in reader]
        except csv.Error as error:
            raise CommandError(f"{self.path}, after line {reader.line_num}: {error}") from error
        for name in ("row", "label"):
            if name not in self._columns:
                raise CommandError(f"{self.path} must have a column called {name}, got {', '.join(self._columns)}")
        if len(set(self._columns)) < len(self._columns):
            raise CommandError(f"{self.path} must have columns of different names, got {', '.join(self._columns)}")
        seen: set[int] = set()
        for number, values in numbered:
            place = f"{self.path}, line {number}"
            if None in values:  # the key of cells beyond the last column in csv
                raise CommandError(f"{place} has more cells than the first line has columns")
            cells = {name: values[raw] or "" for name, raw in zip(self._columns, reader.fieldnames or (), strict=True)}
            if not any(cells.values()):
                continue
            line = self._line(cells, pool_rows, place)
            if line.row in seen:
                raise CommandError(f"{place}: row {line.row} occurs twice")
            seen.add(line.row)
            self.lines.append(line)

    def _line(self, cells: Mapping[str, str], pool_rows: int, place: str) -> Line:
        number = _NUMBER.fullmatch(cells["row"].strip())
        row = int(number[1]) if number else pool_rows
        if row >= pool_rows:
            given = cells["row"].strip()
            raise CommandError(f"{place}: row must be a whole number in [0, {pool_rows}), got {given!r}")
        text = cells["label"].strip()
        label = class_number(text, self._class_names)
        skipped = label is None and text.lower() == SKIP
        if text and label is None and not skipped:
            allowed = describe_classes(self._class_names)
            raise CommandError(f"{place}: label must be {allowed}, {SKIP} or nothing, got {text!r}")
        others = {name: value for name, value in cells.items() if name not in COLUMNS}
        return Line(row, cells.get("utility", ""), label, skipped, others)


def class_number(text: str, class_names: Sequence[str]) -> int | None:
    """The class with this name or number, or None if there is none.

    Spreadsheets capitalise cells, so without an exact match a single name that only differs in case is accepted.
    """
    if text in class_names:
        return class_names.index(text)
    alike = [number for number, name in enumerate(class_names) if name.casefold() == text.casefold()]
    if len(alike) == 1:
        return alike[0]
    number = _NUMBER.fullmatch(text)
    return int(number[1]) if number and int(number[1]) < len(class_names) else None


def describe_classes(class_names: Sequence[str]) -> str:
    """The labels that may be typed, for messages."""
    numbers = f"a number from 0 to {len(class_names) - 1}"
    named = [name for number, name in enumerate(class_names) if name != str(number)]
    return f"{numbers} or a name ({', '.join(named[:5])}{', …' if len(named) > 5 else ''})" if named else numbers
