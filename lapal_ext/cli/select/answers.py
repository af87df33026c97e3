"""Lines of a label file, and the answers in them as a model takes them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Line(NamedTuple):
    """One row of the pool in a label file, with the answer of one annotator."""

    row: int
    utility: str = ""
    label: int | None = None  # None if the row is skipped or has no answer
    skipped: bool = False
    others: Mapping[str, str] = {}  # further columns
    name: str = ""  # the id of the row, if rows have ids
    suggested: str = ""
    trust: float = 1.0  # in the label, >= 0
    annotator: str = ""
    probabilities: tuple[float, ...] = ()  # of the classes, [C], when the row was picked in this run

    @property
    def waits(self) -> bool:
        """Whether the row has no answer yet."""
        return self.label is None and not self.skipped

    @property
    def counts(self) -> bool:
        """Whether the model gets the label."""
        return self.label is not None and self.trust > 0.0


class AnswerFile(Protocol):
    """Where answers come from, and where rows to label are written.

    Attributes:
        path: of the file with the rows to label.
        pool_rows: N.
        annotator: who answers in this file; None if several people may.
        to_do: what to do with the rows that were added, a sentence.
        lines: of rows of the pool.
        gone: lines of rows that the pool does not have.
    """

    path: Path
    pool_rows: int
    annotator: str | None
    to_do: str
    lines: list[Line]
    gone: list[Line]

    def check_unchanged(self) -> None:
        """Raise CommandError if the file was changed since it was read or written."""

    def write(self, lines: Sequence[Line]) -> None:
        """Replace ``lines``; after an error, which is a CommandError, the file is unchanged."""


class Answers(NamedTuple):
    """Answers that count, each with the features of its row. Answers of several annotators repeat the row."""

    features: "Tensor"  # [k, D]
    labels: "Tensor"  # [k] int64
    trust: "Tensor"  # [k] float64, > 0
    first: "Tensor"  # [k] bool, true for one answer per row: that of the most trust, and the first of equals


def labels_of(lines: Iterable[Line]) -> list[int]:
    """The label of each line that has one. Rows that are skipped or wait for an answer have none."""
    return [line.label for line in lines if line.label is not None]


def rows_of(lines: Iterable[Line]) -> list[int]:
    """The rows in these lines, each of them once, in order."""
    return list(dict.fromkeys(line.row for line in lines))


def first_of_row(lines: Sequence[Line]) -> list[bool]:
    """Whether each line is the one of its row that has the most trust, and the first of equals."""
    best: dict[int, int] = {}  # place by row
    for place, line in enumerate(lines):
        if line.row not in best or line.trust > lines[best[line.row]].trust:
            best[line.row] = place
    return [best[line.row] == place for place, line in enumerate(lines)]
