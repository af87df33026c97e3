"""Text files and tables that people write, and spreadsheets save."""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lapal_ext.cli.errors import CommandError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BEGINNING = 1000  # bytes in which a zero says that this is no text in UTF-8
_NAMED_SEPARATOR = re.compile(r'\n*("?sep=([,;|\t])"?)[,;|\t]*(?:\n|$)', re.IGNORECASE)  # the first line of Excel
_AS_UTF8 = "save it as UTF-8 (a spreadsheet: Save as, CSV UTF-8)"


class Table(NamedTuple):
    """The cells of a CSV file as texts, and how the file writes them."""

    columns: Sequence[str]
    rows: Sequence[tuple[int, Mapping[str, str]]]  # each with the number of the line on which it ends
    delimiter: str
    encoding: str
    line_end: str  # that of the first line: two characters as on Windows, or one
    opening: str  # a first line such as "sep=;", by which Excel knows the separator; empty without it


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


def parse_table(content: bytes, path: Path, wanted: Sequence[str]) -> Table:
    """Read a CSV file with commas, semicolons or tabs, or with the separator of a first line such as ``sep=;``.

    Lines without any content are left out, and so are columns at the end that have neither a name nor any content.

    Args:
        content: of the file.
        path: of the file, for messages.
        wanted: names of columns. The separator is that with which the first line has the most of them, or, of equals,
            the most columns.

    Raises:
        CommandError: it is no such file; the message has the line.
    """
    text, encoding = decoded(content, path)
    named = _NAMED_SEPARATOR.match(text)
    if named is not None:
        text = "\n" * named[0].count("\n") + text[named.end() :]  # so that lines keep their numbers
    with _cells_up_to(len(text)):
        delimiter = _separator(text, set(wanted)) if named is None else named[2]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header = next(filter(_has_content, reader), [])
            lines = [(reader.line_num, cells) for cells in reader if any(cells)]
        except csv.Error as error:
            raise CommandError(f"{path}, after line {reader.line_num}: {error}") from error
    columns = [name.strip() for name in header]
    while columns and not columns[-1] and not any(_has_content(cells[len(columns) - 1 :]) for _, cells in lines):
        columns.pop()
    if len(set(columns)) < len(columns):
        raise CommandError(f"{path} must have columns of different names, got {', '.join(columns)}")
    rows = []
    for number, cells in lines:
        if len(columns) > 1 and not _has_content(cells):
            continue  # in a single column, spaces may be a wrong id
        if _has_content(cells[len(columns) :]):
            raise CommandError(f"{path}, line {number} has more cells than the first line has columns")
        rows.append((number, dict(itertools.zip_longest(columns, cells[: len(columns)], fillvalue=""))))
    line_end = "\r\n" if content.partition(b"\n")[0].endswith(b"\r") else "\n"
    return Table(columns, rows, delimiter, encoding, line_end, "" if named is None else named[1])


def _separator(text: str, wanted: set[str]) -> str:
    """The separator that fits the first line with content; separators within quotes do not count."""

    def fit(mark: str) -> tuple[int, int]:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        try:
            names = [name.strip() for name in next(filter(_has_content, lines), [])]
        except csv.Error:  # a quoted name does not end where this separator is
            return -1, 0
        return len(wanted.intersection(names)), len(names)

    return max(",;\t", key=fit)


def _has_content(cells: Sequence[str]) -> bool:
    return any(map(str.strip, cells))


@contextmanager
def _cells_up_to(characters: int) -> Iterator[None]:
    """Let ``csv`` read longer cells than the 131,072 characters that it allows; its limit is one for the process."""
    limit = csv.field_size_limit()
    csv.field_size_limit(max(limit, characters))
    try:
        yield
    finally:
        csv.field_size_limit(limit)
