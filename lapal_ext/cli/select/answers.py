"""Lines of a label file, and the answers in them as a model takes them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

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

    @property
    def waits(self) -> bool:
        """Whether the row has no answer yet."""
        return self.label is None and not self.skipped

    @property
    def counts(self) -> bool:
        """Whether the model gets the label."""
        return self.label is not None and self.trust > 0.0


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
