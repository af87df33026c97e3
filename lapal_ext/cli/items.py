"""The items behind the rows of a pool: their ids, what to show of them, and further columns."""

import argparse
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.text_files import parse_table, read_lines
from lapal_ext.pool.row_ids import RowIds

ID, TEXT, PATH = "id", "text", "path"
_SHOWN = (TEXT, PATH)  # columns of a table of items that a person needs to see; the first that exists


class Items(NamedTuple):
    """What is known of the rows besides their features."""

    ids: RowIds | None = None
    columns: Mapping[str, Sequence[str]] = {}  # texts by row

    def name(self, row: int) -> str:
        """What a person calls a row."""
        return f"row {row}" if self.ids is None else self.ids.ids[row]

    def cells(self, row: int) -> dict[str, str]:
        """The further columns of one row."""
        return {name: values[row] for name, values in self.columns.items()}

    def shown(self, row: int) -> str:
        """The text or the path of an item; empty if there is none."""
        return next((self.columns[name][row] for name in _SHOWN if name in self.columns), "")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``--ids`` and ``--items``."""
    parser.add_argument("--ids", type=Path, metavar="FILE", help="names of the rows, one per line, in their order")
    parser.add_argument(
        "--items",
        type=Path,
        metavar="FILE.csv",
        help="a table with the columns id, and text or path, one line per row; further columns are kept",
    )


def read_items(options: argparse.Namespace, reserved: Sequence[str] = ()) -> Items:
    """The items of a pool. They can be read before the pool is, and ``check_counts`` then compares them with it.

    Args:
        options: with ``ids`` and ``items``, and ``texts`` where the command has it.
        reserved: columns that a table of items must not have.

    Raises:
        CommandError: a file is invalid.
    """
    texts: Path | None = getattr(options, "texts", None)
    if options.items is not None:
        if options.ids is not None or texts is not None:
            raise CommandError("--items has ids and texts: leave out --ids and --texts")
        return read_table(options.items, reserved)
    ids = None if options.ids is None else _as_ids(read_lines("--ids", options.ids), options.ids)
    return Items(ids, {} if texts is None else {TEXT: read_lines("--texts", texts, errors="replace")})


def check_counts(options: argparse.Namespace, items: Items, n_rows: int) -> None:
    """Raise CommandError unless there are as many items as the pool has rows."""
    if options.items is not None:
        _check_count("--items", options.items, items.ids, n_rows, " below its first one")
        return
    _check_count("--ids", options.ids, items.ids, n_rows)
    _check_count("--texts", getattr(options, "texts", None), items.columns.get(TEXT), n_rows)


def read_table(path: Path, reserved: Sequence[str] = ()) -> Items:
    """A table of items.

    Raises:
        CommandError: the file is invalid.
    """
    try:
        table = parse_table(path.read_bytes(), path, (ID, *_SHOWN))
    except OSError as error:
        raise CommandError(f"--items must be a CSV file, got {path}: {error.strerror}") from error
    if ID not in table.columns:
        raise CommandError(f"{path}, line 1: must have a column called {ID}, got {', '.join(table.columns)}")
    for name in table.columns:
        if name in reserved or not name:
            raise CommandError(f"{path}, line 1: must not have a column called {name!r}: give it another name")
    ids = _as_ids([cells[ID] for _, cells in table.rows], path, [number for number, _ in table.rows])
    return Items(ids, {name: [cells[name] for _, cells in table.rows] for name in table.columns if name != ID})


def _as_ids(ids: Sequence[str], path: Path, lines: Sequence[int] | None = None) -> RowIds:
    try:
        return RowIds(ids, str(path), lines)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _check_count(option: str, path: Path | None, values: Sized | None, n_rows: int, where: str = "") -> None:
    n_lines = n_rows if values is None else len(values)
    if n_lines != n_rows:
        raise CommandError(
            f"{option} must have one line for each of the {n_rows} rows of the pool{where}, got {n_lines} in {path}"
        )
