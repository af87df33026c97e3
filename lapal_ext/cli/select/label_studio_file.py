"""Exports of Label Studio in place of the label file: answers are read from them, and chosen tasks are written."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.items import ID, Items
from lapal_ext.cli.select.answers import Line
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.pool_record import PoolRecord
from lapal_ext.cli.text_files import read_lines

SUFFIX = ".json"
_EXPORT = "/api/projects/ID/export?exportType=JSON&download_all_tasks=true"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare ``--label-studio``, ``--label-config`` and ``--control``."""
    add = parser.add_argument
    add(
        "--label-studio",
        type=Path,
        nargs="+",
        metavar="FILE.json",
        help="JSON exports of Label Studio, with the answers; --out is then a .json file of tasks with predictions",
    )
    add("--label-config", type=Path, metavar="FILE.xml", help="labeling interface of the project; it has the classes")
    add("--control", metavar="NAME", help="Choices tag of the labeling interface, if there are several")


def check_options(options: argparse.Namespace) -> None:
    """Raise CommandError unless the options fit together."""
    if options.label_studio is None:
        for name in ("label_config", "control"):
            if getattr(options, name) is not None:
                raise CommandError(f"--{name.replace('_', '-')} needs --label-studio")
        return
    if options.annotators is not None or options.out is None:
        raise CommandError("--label-studio has the answers of all annotators: pass --out FILE.json alone")
    if options.interactive:
        raise CommandError("--interactive asks on the terminal: leave out --label-studio, or --interactive")
    if options.out.suffix.lower() != SUFFIX:
        raise CommandError(f"--out must be a {SUFFIX} file that Label Studio imports, got {options.out}")
    if options.out.resolve() in [path.resolve() for path in options.label_studio]:
        raise CommandError(f"--out must be another file than the export, got {options.out}")


def classes_of(options: argparse.Namespace) -> Classes | None:
    """The classes of ``--label-config``; None if it does not list them."""
    from lapal_ext.interop.label_studio import read_control

    names = read_control(_text(options.label_config), options.control).classes
    if names is None:
        return None
    return Classes(names, grows=options.new_classes, source=options.label_config, by_name=True)


class LabelStudioFile:
    """The answers in exports, and the file of chosen tasks: an ``AnswerFile``.

    Args:
        options: of the command.
        pool_rows: N.
        classes: what an answer may be. A name that it does not have is added to it, if it grows.
        record: recognises the pool.
        items: of the rows. If they have ids, tasks are known by them; else task i is that of row i.

    Raises:
        CommandError: an answer is no class, or the tasks do not fit to the pool.
        StorageError: an export is invalid.
    """

    def __init__(
        self, options: argparse.Namespace, pool_rows: int, classes: Classes, record: PoolRecord, items: Items
    ) -> None:
        from lapal_ext.interop.label_studio import read_tasks

        self.path, self.pool_rows = options.out, pool_rows
        self.gone: list[Line] = []
        self.annotator: str | None = None  # an export has the answers of all
        # If the project has all tasks, imported ones would be copies of them.
        what = "the predictions for the project" if items.ids is None else "the tasks to import"
        self.to_do = f"{options.out} has {what}."
        self._classes, self._record = classes, record
        config = None if options.label_config is None else _text(options.label_config)
        tasks = read_tasks(options.label_studio, config, options.control)
        if items.ids is not None:
            columns = [{ID: name, **items.cells(row)} for row, name in enumerate(items.ids.ids)]
            tasks = tasks.for_pool(items.ids.ids, columns)
            record.check_ids({items.ids.ids[row]: row for row in set(tasks.rows.values())}, items.ids.source)
        elif len(tasks.exported) != pool_rows:
            raise CommandError(
                f"--label-studio must have a task for each of the {pool_rows} rows of the pool, got "
                f"{len(tasks.exported)}: the pages of Label Studio export annotated tasks alone, and {_EXPORT} all of "
                "them. With --items or --ids, a part of the tasks will do."
            )
        else:
            record.check_rows()
        self._tasks, ids = tasks, tasks.ids
        self.lines = [
            Line(
                answer.row,
                label=self._number(answer.label, ids[answer.row]),
                skipped=answer.label is None,
                name=f"task {ids[answer.row]}" if items.ids is None else items.ids.ids[answer.row],
                annotator=f"annotator {answer.annotator}",
            )
            for answer in tasks.answers
        ]

    def check_unchanged(self) -> None:
        """Nothing is kept in ``path``, so that there is nothing to lose."""

    def write(self, lines: Sequence[Line]) -> None:
        """Write the tasks of the lines that wait for an answer, in their order, with predictions where they have any.

        Raises:
            CommandError: the file cannot be written.
        """
        import torch

        from lapal_ext.interop.label_studio import write_tasks

        self.lines = list(lines)
        waiting = [line for line in lines if line.waits]
        shares = [line.probabilities for line in waiting]
        probabilities = torch.tensor(shares, dtype=torch.float64, device="cpu") if all(shares) else None
        try:
            self._record.write()
            if waiting:
                write_tasks(self.path, self._tasks, [line.row for line in waiting], probabilities, self._classes.names)
        except OSError as error:
            raise CommandError(f"cannot write {self.path}: {error.strerror}") from error

    def _number(self, label: str | None, task: int | None) -> int | None:
        if label is None or label in self._classes.names:
            return None if label is None else self._classes.names.index(label)
        if not self._classes.grows:
            raise CommandError(
                f"task {task}: the choice must be {self._classes.allowed()}, got {label!r} (--new-classes makes it a "
                "class)"
            )
        try:
            return self._classes.add(label)
        except CommandError as error:
            raise CommandError(f"task {task}: {error}") from error


def _text(path: Path) -> str:
    return "\n".join(read_lines("--label-config", path))
