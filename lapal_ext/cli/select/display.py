"""Text as it is shown on a terminal: safe, within its width, and cut where it is long."""

import shutil
import textwrap
import unicodedata
from collections.abc import Iterable

_INDENT = "  "
_WIDEST = 100  # columns; longer lines are hard to read
_LEAST = 20
_LINES = 6  # of a text, before it is cut
_BIDIRECTIONAL = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BREAKS = "\n\v\f\u0085\u2028\u2029"  # characters at which a text continues on the next line
_SHOWN_FOR_CONTROL = "\N{REPLACEMENT CHARACTER}"


def safe(text: str) -> str:
    """The text without characters that a terminal would obey: controls, and those that turn the direction of writing.

    Characters that join letters or pictures stay.
    """
    return "".join(
        _SHOWN_FOR_CONTROL if unicodedata.category(mark) in ("Cc", "Cs") or mark in _BIDIRECTIONAL else mark
        for mark in text
    )


def width() -> int:
    """Columns to fill."""
    return max(_LEAST, min(_WIDEST, shutil.get_terminal_size().columns) - 1)


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of one safe text within the width of the terminal."""
    lines = textwrap.wrap(
        text, width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )  # options have hyphens
    return lines or [indent.rstrip()]


def in_columns(labels: Iterable[str]) -> list[str]:
    """Short texts side by side, with two spaces between them."""
    lines, line = [], ""
    for label in labels:
        if line and len(line) + 2 + len(label) > width():
            lines.append(line)
            line = ""
        line = f"{line}  {label}" if line else label
    return [*lines, line] if line else lines


def item_lines(text: str) -> list[str]:
    """The text of an item: its lines, wrapped and indented."""
    for mark in _BREAKS:
        text = text.replace(mark, "\n")
    lines = [part for line in text.replace("\t", " ").split("\n") for part in wrapped(safe(line), _INDENT)]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def cut(lines: list[str], key: str) -> tuple[list[str], list[str]]:
    """The first lines of a text, with a last one that says how to see more; and the lines that are left."""
    if len(lines) <= _LINES + 1:
        return lines, []
    return [*lines[:_LINES], f"{_INDENT}… {len(lines) - _LINES} more lines: {key} shows them"], lines[_LINES:]
