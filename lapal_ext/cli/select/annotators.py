"""Several label files, one for each annotator: who gets which rows in a run, and where annotators disagree.

A row is for one annotator, except for the first ``--overlap`` rows of a run, which are common to all who get rows in
it. The lines of these rows name the annotators in the column ``common_to``. If the command ends after it has written
only some of the files, the next run finds there which common rows the other files lack, and adds those first.
"""

from collections.abc import Callable, Mapping, Sequence

from lapal_ext.cli.select.answers import AnswerFile, Line, labels_of, rows_of
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.display import safe
from lapal_ext.cli.select.label_file import COMMON

_LISTED = 5  # rows that a report of disagreements names
_SEPARATOR = "/"  # of names of files, which do not have it


class Handout:
    """How many rows each annotator gets in a run.

    Args:
        files: one for each annotator.
        number: rows for each annotator who gets any.
        overlap: rows among them that are common to all who get any.
        left: rows of the pool that are in no file.
        more: whether annotators whose rows wait for an answer get others too.

    Attributes:
        total: rows to pick.
    """

    def __init__(self, files: Sequence[AnswerFile], number: int, overlap: int, left: int, *, more: bool) -> None:
        self._files = files
        self._getting = [
            place for place, file in enumerate(files) if more or not any(line.waits for line in file.lines)
        ]
        self._owed = {place: _owed(files, place)[:number] for place in self._getting}
        owed = [len(lines) for lines in self._owed.values()]
        self._common = 0
        if len(owed) > 1:
            self._common = min(max(0, overlap - max(owed)), left, number - max(owed))
        needed = [number - self._common - count for count in owed]
        # Picks are dealt in turn, since earlier ones are better.
        self._turns = [
            place
            for turn in range(max(needed, default=0))
            for place, count in zip(self._getting, needed, strict=True)
            if turn < count
        ]
        self.total = min(left, self._common + len(self._turns))

    def lines(self, picked: Sequence[Line], cells: Callable[[int], Mapping[str, str]]) -> list[list[Line]]:
        """The lines to add to each file.

        Args:
            picked: a line for each row that was picked, best first, [total].
            cells: gives the further columns of a row.
        """
        added: list[list[Line]] = [[] for _ in self._files]
        for place, lines in self._owed.items():
            for line in lines:
                others = {**cells(line.row), COMMON: line.others[COMMON]}
                added[place].append(Line(line.row, line.utility, None, False, others, line.name, line.suggested))
        names = _SEPARATOR.join(str(self._files[place].annotator) for place in self._getting)
        for line in picked[: self._common]:
            for place in self._getting:
                added[place].append(line._replace(others={**line.others, COMMON: names}))
        for place, line in zip(self._turns, picked[self._common :], strict=False):
            added[place].append(line)
        return added


def _owed(files: Sequence[AnswerFile], place: int) -> list[Line]:
    """Lines of rows that other files have as common with this one, which lacks them."""
    present = set(rows_of(files[place].lines))
    owed: dict[int, Line] = {}
    for file in files:
        for line in file.lines:
            names = line.others.get(COMMON, "").split(_SEPARATOR)
            if files[place].annotator in names and line.row not in present:
                owed.setdefault(line.row, line)
    return list(owed.values())


def interleaved(lines: Sequence[Sequence[Line]]) -> list[Line]:
    """The lines of all files with the oldest first, as far as their places in their files tell."""
    placed = [((place + 1) / len(own), line) for own in lines for place, line in enumerate(own)]
    return [line for _, line in sorted(placed, key=lambda pair: pair[0])]


def report(files: Sequence[AnswerFile], added: Sequence[Sequence[Line]], overlap: int, *, asked: bool) -> None:
    """Print how many answers each annotator has given, and how many rows each file has got in this run.

    Args:
        files: one for each annotator, with the lines that were added.
        added: these lines.
        overlap: how many of them should be common.
        asked: whether a file without any could have got some.
    """
    given = ", ".join(f"{file.annotator} {len(labels_of(file.lines))}" for file in files)
    every = [line for file in files for line in file.lines]
    chosen = rows_of(line for lines in added for line in lines)
    print(f"Answers: {len(labels_of(every))} ({given}). Rows chosen: {len(chosen)}.")
    held_back = False
    for file, lines in zip(files, added, strict=True):
        waiting = sum(line.waits for line in file.lines) - len(lines)
        common = sum(COMMON in line.others for line in lines)
        parts = [f"rows added: {len(lines)}"]
        if common:
            parts.append(f"of which common to several: {common}")
        if waiting:
            parts.append(f"rows that waited for a label before: {waiting}")
        print(f"{file.path}: {', '.join(parts)}.")
        held_back |= bool(waiting) and not lines
    if held_back and asked:
        print("Files with rows that wait get no others. To add rows to them all the same, pass --more.")
    if overlap > 0 and chosen and not any(COMMON in line.others for lines in added for line in lines):
        print("No row is common to several files: --overlap is for those who get rows in the same run.")


def disagreements(lines: Sequence[Line], classes: Classes) -> list[str]:
    """What to print about rows with different labels that count; nothing if there are none."""
    answers: dict[int, list[Line]] = {}
    for line in lines:
        if line.counts:
            answers.setdefault(line.row, []).append(line)
    rows = [said for said in answers.values() if len(set(labels_of(said))) > 1]
    if not rows:
        return []
    shown = []
    for said in rows[:_LISTED]:
        words = (f"{line.annotator or 'somebody'} says {classes.names[line.label or 0]}" for line in said)
        shown.append(safe(f"  {said[0].name or f'row {said[0].row}'}: {', '.join(words)}"))
    if len(rows) > _LISTED:
        shown.append(f"  and {len(rows) - _LISTED} more")
    return [
        f"Rows with different labels: {len(rows)}.",
        *shown,
        "A row counts with each of its labels; to change that, correct one of them, or lower its trust.",
    ]
