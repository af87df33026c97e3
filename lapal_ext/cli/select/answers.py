"""Lines of a label file, and the answers in them as a model takes them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Line(NamedTuple):
    """One row of the pool in a label file."""

    row: int
    utility: str = ""
    label: int | None = None  # None if the row is skipped or has no answer
    skipped: bool = False
    others: Mapping[str, str] = {}  # further columns
    name: str = ""  # the id of the row, if rows have ids
    suggested: str = ""

    @property
    def waits(self) -> bool:
        """Whether the row has no answer yet."""
        return self.label is None and not self.skipped


class Answers(NamedTuple):
    """The rows that have a label: their features and their labels."""

    features: "Tensor"  # [k, D]
    labels: "Tensor"  # [k] int64


def labelled(lines: Iterable[Line]) -> list[tuple[int, int]]:
    """The row and the label of each line that has a label. Rows that are skipped or wait for an answer have none."""
    return [(line.row, line.label) for line in lines if line.label is not None]


def labels_of(lines: Iterable[Line]) -> list[int]:
    """The labels alone."""
    return [label for _, label in labelled(lines)]
