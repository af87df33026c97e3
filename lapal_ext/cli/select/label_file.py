"""The label file: the rows that ``lapal-ext select`` chooses, and the answers of annotators.

A CSV file with the columns ``row`` (of the pool, from zero), ``id`` if rows have ids, ``utility`` (when it was picked),
``suggested`` (the class that the model expected then, which is no answer) and ``label``: the number or the name of a
class, ``skip``, or nothing if there is no answer yet. Spreadsheets read and write it, with commas, semicolons or tabs,
and with or without a first line such as ``sep=;``. Further columns are kept. Without the column ``suggested``,
nothing is suggested.

People may add the columns ``trust`` (in the label, a number >= 0; an empty cell is 1) and ``annotator``. A row may have
a line for each annotator, and each of them is an observation.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lapal_ext.atomic_file import replace_file
from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.items import ID
from lapal_ext.cli.select.answers import Line, labels_of
from lapal_ext.cli.select.classes import SKIP, Classes, whole_number
from lapal_ext.cli.select.pool_record import PoolRecord
from lapal_ext.cli.text_files import Table, parse_table
from lapal_ext.pool.row_ids import RowIds

ROW, UTILITY, SUGGESTED, LABEL = "row", "utility", "suggested", "label"
COLUMNS = (ROW, UTILITY, SUGGESTED, LABEL)
TRUST, ANNOTATOR, COMMON = "trust", "annotator", "common_to"
RESERVED = (*COLUMNS, TRUST, ANNOTATOR, COMMON, "")  # columns that a table of items must not have
_TABS = ".tsv"  # a new file with this suffix has tabs between its cells
SUFFIXES = (".csv", _TABS, ".txt")
_GONE = -1
_MOST_TRUST = 3.4e38  # about the largest number in float32, the dtype of most models


class LabelFile:
    """A label file that is read once and written many times, as it was: separator, columns, line ends, byte order mark.

    Columns at the end that have neither a name nor any content are left out. A new ``.tsv`` file gets tabs, other new
    files get commas.

    Args:
        path: of the file; one that does not exist counts as empty.
        pool_rows: N; rows must lie in [0, N).
        classes: what a label may be. A name that it does not have is added to it, if it grows.
        record: recognises the pool; None if that is not known.
        ids: of the rows of the pool; lines are then known by their ids, whatever their row numbers were.
        annotator: who gives all answers in the file; None if its column ``annotator`` says so.

    Attributes:
        pool_rows: N.
        to_do: what a person does next, a sentence.
        lines: of rows of the pool.
        gone: lines of ids that the pool does not have. They stay in the file.

    Raises:
        CommandError: a line is invalid; the message has its number. Or the file belongs to another pool.
    """

    def __init__(
        self,
        path: Path,
        pool_rows: int,
        classes: Classes,
        record: PoolRecord | None = None,
        ids: RowIds | None = None,
        annotator: str | None = None,
    ) -> None:
        self.path, self.pool_rows, self.annotator = path, pool_rows, annotator
        self.to_do = f"Fill in their labels in {path}."
        self.lines: list[Line] = []
        self.gone: list[Line] = []
        self._classes, self._record, self._ids = classes, record, ids
        self._content = self._on_disk()
        self._columns = [name for name in (ROW, ID, UTILITY, SUGGESTED, LABEL) if name != ID or ids is not None]
        self._delimiter, self._encoding = "\t" if path.suffix.lower() == _TABS else ",", "utf-8"
        self._line_end, self._opening = "\n", ""
        if self._content is not None:
            table = parse_table(self._content, path, (ROW, ID, LABEL))
            self._columns, self._delimiter, self._encoding = list(table.columns), table.delimiter, table.encoding
            self._line_end, self._opening = table.line_end, table.opening
            self._parse(table)

    def write(self, lines: Sequence[Line]) -> None:
        """Replace the lines of rows of the pool; after an error the file is unchanged.

        Raises:
            CommandError: the file cannot be written, or was changed since it was read.
        """
        self.check_unchanged()
        content = self._text([*lines, *self.gone]).encode(self._encoding)
        try:
            if self._record is not None:
                self._record.write()  # first: answers without a record would be accepted for any pool
            if content != self._content:
                replace_file(self.path, lambda scratch: scratch.write_bytes(content), self.check_unchanged)
        except OSError as error:
            raise CommandError(f"cannot write {self.path}: {error.strerror}") from error
        self._content = content
        self.lines = list(lines)

    def check_unchanged(self) -> None:
        """Raise CommandError if the file was changed since it was read or written."""
        if self._on_disk() != self._content:
            raise CommandError(
                f"{self.path} was changed by another program meanwhile and is not overwritten: run the command again"
            )

    def drop_unused_classes(self, lines: Sequence[Line]) -> list[Line]:
        """Remove classes that answers have added, and that neither these lines nor ``gone`` have.

        Returns:
            The lines with the numbers that their classes have then.
        """
        numbers = self._classes.drop_unused(labels_of([*lines, *self.gone]))
        self.gone = _renumbered(self.gone, numbers)
        return _renumbered(lines, numbers)

    def _text(self, lines: Sequence[Line]) -> str:
        needed = [ROW, UTILITY, LABEL] if self._ids is None else [ROW, ID, UTILITY, LABEL]
        columns = list(dict.fromkeys([*self._columns, *needed, *(name for line in lines for name in line.others)]))
        file = io.StringIO(newline="")
        if self._opening:
            file.write(self._opening + self._line_end)
        writer = csv.DictWriter(
            file, columns, restval="", extrasaction="ignore", delimiter=self._delimiter, lineterminator=self._line_end
        )
        writer.writeheader()
        for line in lines:
            label = SKIP if line.skipped else "" if line.label is None else self._classes.names[line.label]
            cells = {ROW: "" if line.row == _GONE else line.row, UTILITY: line.utility, SUGGESTED: line.suggested}
            writer.writerow({**line.others, **cells, LABEL: label} | ({ID: line.name} if line.name else {}))
        return file.getvalue()

    def _on_disk(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CommandError(f"cannot read {self.path}: {error.strerror}") from error

    def _parse(self, table: Table) -> None:
        by_id = self._ids is not None and ID in table.columns
        if not by_id and self._record is not None and table.rows:
            self._record.check_rows()
        for name in (ID if by_id else ROW, LABEL):
            if name not in table.columns:
                got = ", ".join(table.columns) or "nothing"
                raise CommandError(f"{self.path} must have a column called {name}, got {got}")
        seen: dict[tuple[int | str, str], int] = {}
        for number, cells in table.rows:
            place = f"{self.path}, line {number}"
            line = self._line(cells, place, by_id=by_id)
            key = (line.name if line.row == _GONE else line.row), line.annotator
            if key in seen:
                what = f"id {line.name!r}" if by_id else f"row {line.row}"
                whose = f" of annotator {line.annotator!r}" if line.annotator and self.annotator is None else ""
                ignored = line.others.get(ANNOTATOR) and self.annotator is not None
                hint = f": {ANNOTATOR} does not count with --annotators, which has a file for each" if ignored else ""
                raise CommandError(f"{place}: {what}{whose} occurs twice, first in line {seen[key]}{hint}")
            seen[key] = number
            (self.gone if line.row == _GONE else self.lines).append(line)
        if self._record is not None and self._ids is not None:
            rows = {line.name: line.row for line in self.lines}
            if by_id:
                self._record.check_ids(rows, self._ids.source)
            else:
                self._record.note(rows)

    def _line(self, cells: Mapping[str, str], place: str, *, by_id: bool) -> Line:
        name = cells[ID].strip() if by_id else ""
        row = self._row_of(name, place) if by_id else _row_number(cells[ROW], self.pool_rows, place)
        if self._ids is not None and row != _GONE:
            name = self._ids.ids[row]
        label, skipped = self._answer(cells[LABEL].strip(), place)
        mine = COLUMNS if self._ids is None else (*COLUMNS, ID)
        others = {column: value for column, value in cells.items() if column not in mine}
        trust = _trust(cells.get(TRUST, "").strip(), place)
        annotator = cells.get(ANNOTATOR, "").strip() if self.annotator is None else self.annotator
        suggested = cells.get(SUGGESTED, "")
        return Line(row, cells.get(UTILITY, ""), label, skipped, others, name, suggested, trust, annotator)

    def _row_of(self, name: str, place: str) -> int:
        assert self._ids is not None
        if not name:
            raise CommandError(f"{place}: id must be one of those in {self._ids.source}, got nothing")
        row = self._ids.row_of(name)
        return _GONE if row is None else row

    def _answer(self, text: str, place: str) -> tuple[int | None, bool]:
        """The label, and whether the row is skipped."""
        if not text:
            return None, False
        try:
            label = self._classes.number_in_file(text)
            if label is not None or text.lower() == SKIP:
                return label, label is None
            if self._classes.grows:
                return self._classes.add(text), False
        except CommandError as error:
            raise CommandError(f"{place}: {error}") from error
        meant = self._classes.close_to(text)
        hint = "" if meant is None else f": did you mean {meant}?"
        fits = self._classes.are_numbers == (whole_number(text) is not None)
        further = " (--new-classes makes it a class)" if fits else ""
        raise CommandError(
            f"{place}: label must be {self._classes.allowed()}, {SKIP} or nothing, got {text!r}{hint}{further}"
        )


def _renumbered(lines: Sequence[Line], numbers: Mapping[int, int]) -> list[Line]:
    return [line if line.label is None else line._replace(label=numbers[line.label]) for line in lines]


def _row_number(cell: str, pool_rows: int, place: str) -> int:
    row = whole_number(cell.strip())
    if row is None or row >= pool_rows:
        raise CommandError(f"{place}: row must be a whole number in [0, {pool_rows}), got {cell.strip()!r}")
    return row


def _trust(cell: str, place: str) -> float:
    """The number in a cell, also with the decimal comma of some spreadsheets; 1 if the cell is empty."""
    try:
        trust = float(cell.replace(",", ".")) if cell else 1.0
    except ValueError:
        trust = math.nan
    if 0.0 <= trust <= _MOST_TRUST:
        return trust
    if _MOST_TRUST < trust < math.inf:
        raise CommandError(f"{place}: trust must be at most {_MOST_TRUST:g}, got {cell!r}")
    raise CommandError(
        f"{place}: trust must be a number of at least 0, got {cell!r}: type 0.5 for half the trust, 0 for none, or "
        "nothing for 1"
    )
