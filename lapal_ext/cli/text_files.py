"""Text files and tables that people write, and spreadsheets save."""

import codecs
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lapal_ext.cli.errors import CommandError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BEGINNING = 1000  # bytes in which a zero says that this is no text in UTF-8
_AS_UTF8 = "save it as UTF-8 (a spreadsheet: Save as, CSV UTF-8)"


class Table(NamedTuple):
    """The cells of a CSV file as texts, and how the file writes them."""

    columns: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, str]]]  # each with the number of the line on which it ends
    delimiter: str
    encoding: str
    line_end: str  # that of the first line: two characters as on Windows, or one


def decoded(content: bytes, path: Path, *, errors: str = "strict") -> tuple[str, str]:
    """The text of a file, with single newlines, and its encoding: ``utf-8``, or ``utf-8-sig`` with a byte order mark.

    Raises:
        CommandError: it is no text in UTF-8; the message has the line.
    """
    if content.startswith(_UTF16) or b"\0" in content[:_BEGINNING]:
        kind = "in UTF-16" if content.startswith(_UTF16) else "no text, or is in UTF-16"
        raise CommandError(f"{path} is {kind}: {_AS_UTF8}")
    # With the byte order mark by which Excel recognises UTF-8.
    encoding = "utf-8-sig" if content.startswith(codecs.BOM_UTF8) else "utf-8"
    try:
        # A carriage return within a cell would not be quoted when it is written again.
        return content.decode(encoding, errors).replace("\r\n", "\n").replace("\r", "\n"), encoding
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CommandError(f"{path}, line {line}: byte 0x{content[error.start]:02x} is no UTF-8: {_AS_UTF8}") from error


def read_lines(option: str, path: Path, *, errors: str = "strict") -> list[str]:
    """The lines of a text file; a last newline ends the last line.

    Raises:
        CommandError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CommandError(f"{option} must be a text file, got {path}: {error.strerror}") from error
    text = decoded(content, path, errors=errors)[0]
    return text.removesuffix("\n").split("\n") if text else []


def parse_table(content: bytes, path: Path) -> Table:
    """Read a CSV file with commas, semicolons or tabs; lines without any content are left out.

    Raises:
        CommandError: it is no such file; the message has the line.
    """
    text, encoding = decoded(content, path)
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        with _cells_up_to(len(text)):
            columns = [name.strip() for name in reader.fieldnames or ()]
            numbered = [(reader.line_num, values) for values in reader]
    except csv.Error as error:
        raise CommandError(f"{path}, after line {reader.line_num}: {error}") from error
    if len(set(columns)) < len(columns):
        raise CommandError(f"{path} must have columns of different names, got {', '.join(columns)}")
    rows = []
    for number, values in numbered:
        if None in values:  # the key of cells beyond the last column in csv
            raise CommandError(f"{path}, line {number} has more cells than the first line has columns")
        cells = {name: values[raw] or "" for name, raw in zip(columns, reader.fieldnames or (), strict=True)}
        if any(cells.values()):
            rows.append((number, cells))
    return Table(columns, rows, delimiter, encoding, "\r\n" if content.partition(b"\n")[0].endswith(b"\r") else "\n")


@contextmanager
def _cells_up_to(characters: int) -> Iterator[None]:
    """Let ``csv`` read longer cells than the 131,072 characters that it allows; its limit is one for the process."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, characters))
    try:
        yield
    finally:
        csv.field_size_limit(limit)
