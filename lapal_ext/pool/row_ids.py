"""Names of the rows of a pool, by which an answer finds its row after the pool was reordered, has grown or shrunk."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_WHOLE = re.compile(r"0*([0-9]{1,15})(\.0+)?")  # spreadsheets drop leading zeros, and make floats of whole numbers


class RowIds:
    """One id per row of a pool, in the order of the rows.

    Args:
        ids: N texts, distinct; spaces around them do not count, nor does how Unicode composes a letter and its accents.
        source: the file that has them, for errors.
        lines: the line of each in that file, for errors; counted from one by default.

    Raises:
        ValueError: an id is empty or occurs twice; the message has the lines.
    """

    def __init__(self, ids: Iterable[str], source: str = "ids", lines: Sequence[int] | None = None) -> None:
        self.ids = tuple(name.strip() for name in ids)
        self.source = source
        places = range(1, len(self.ids) + 1) if lines is None else lines
        self._rows: dict[str, int] = {}
        for row, name in enumerate(self.ids):
            if not name:
                raise ValueError(f"{source}, line {places[row]}: an id must not be empty")
            key = composed(name)
            if key in self._rows:
                raise ValueError(
                    f"{source}, lines {places[self._rows[key]]} and {places[row]}: both rows have the id "
                    f"{name!r}, and every row needs an id of its own"
                )
            self._rows[key] = row
        self._numbers: dict[str, int | None] | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def row_of(self, name: str) -> int | None:
        """The row with this id, or None if there is none.

        A whole number also finds the only id of the same value: spreadsheets write 7 for 007, and 7.0 for 7.
        """
        name = composed(name.strip())
        if name in self._rows:
            return self._rows[name]
        number = _WHOLE.fullmatch(name)
        if number is None:
            return None
        if self._numbers is None:
            self._numbers = {}
            for row, known in enumerate(self.ids):
                if match := _WHOLE.fullmatch(known):
                    self._numbers[match[1]] = None if match[1] in self._numbers else row
        return self._numbers.get(number[1])


def composed(name: str) -> str:
    """One form of names that look the same: keyboards compose letters and accents, and macOS takes them apart."""
    return unicodedata.normalize("NFC", name)
