"""What tells ``lapal-ext select`` that the rows of a label file are those that the answers were given for.

Without ids, rows are numbers, so the answers belong to one pool, in one order: the record holds the checksum of this
pool (``pool/checksum.py`` says what it compares). With ids, it holds a digest of the features of each id in the label
file, so that the pool may be reordered, grow or shrink, and ids that are listed in another order than the features are
noticed.

The record of ``out.csv`` is ``out.csv.pool.json``. It is a file of its own because people edit, sort and filter the
label file with programs that would show, change or drop a line or column of that kind.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapal_ext.atomic_file import replace_file
from lapal_ext.cli.arguments import RECORD
from lapal_ext.cli.errors import CommandError

if TYPE_CHECKING:
    from lapal_ext.pool.checksum import PoolChecksum

_IDS = "ids"


class PoolRecord:
    """The record beside one label file.

    Args:
        label_file: the path of the label file.
        pool: checksum of the pool.
        digests: gives a digest of the features of rows; None if rows have no ids. With several processes, all of them
            call it, inside ``check`` and ``note``.

    Raises:
        CommandError: the record is damaged or cannot be read.
    """

    def __init__(
        self,
        label_file: Path,
        pool: "PoolChecksum",
        digests: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        self.path = label_file.with_name(f"{label_file.name}{RECORD}")
        self._file, self._pool, self._digests = label_file, pool, digests
        self._of_ids: dict[str, int] = {}
        self._go_on = f"To use the answers in {self._file} with this pool all the same, delete {self.path}."

    def check_rows(self) -> None:
        """Raise CommandError if the record says that the row numbers of the label file are those of another pool."""
        from lapal_ext.pool.checksum import PoolChecksum

        saved = self._read()
        if saved is None:
            return
        if _IDS in saved and self._digests is not None:
            raise CommandError(
                f"{self._file} has lost its column id, by which its rows are known: put the column back. {self._go_on} "
                "Its row numbers then count."
            )
        if _IDS in saved:
            raise CommandError(
                f"{self._file} was begun with ids of rows: pass the same --ids or --items. {self._go_on}"
            )
        try:
            difference = PoolChecksum(**saved).difference(self._pool)
        except (ValueError, TypeError, AttributeError) as error:
            raise self._damaged() from error
        if difference is not None:
            raise CommandError(
                f"{self._file} was begun with another pool: --pool {difference}, so that its row numbers mean other "
                f"rows. Pass the pool that it was begun with, in the same order, or another --out. Ids of rows (--ids) "
                f"let a pool change between two runs. {self._go_on}"
            )

    def check_ids(self, rows: Mapping[str, int], source: str) -> None:
        """Raise CommandError if the record says that the features of an id are others than before.

        Args:
            rows: the row of each id of the label file that is in the pool.
            source: the file of the ids, for errors.
        """
        saved = self._read()
        self.note(rows)
        if saved is None or _IDS not in saved:
            return
        if not isinstance(saved[_IDS], dict):
            raise self._damaged()
        changed = [name for name in rows if saved[_IDS].get(name, self._of_ids[name]) != self._of_ids[name]]
        if changed:
            raise CommandError(
                f"--pool has other features than before for {len(changed)} of the {len(rows)} ids in {self._file}, for "
                f"example {changed[0]!r}: the lines of {source} must have the order of the rows of the pool. If the "
                f"features come from another encoder than before, delete {self.path} to use the answers all the same."
            )
        self._of_ids = saved[_IDS] | self._of_ids

    def note(self, rows: Mapping[str, int]) -> None:
        """Take ids with their rows into the record, which ``write`` writes."""
        if self._digests is not None:
            self._of_ids.update(zip(rows, self._digests(list(rows.values())), strict=True))

    def write(self) -> None:
        """Write the record if it has changed.

        Raises:
            OSError: it cannot be written.
        """
        content: Mapping[str, Any] = self._pool._asdict() if self._digests is None else {_IDS: self._of_ids}
        text = json.dumps(content, indent=1) + "\n"
        if not self.path.exists() or self.path.read_text(encoding="utf-8", errors="replace") != text:
            replace_file(self.path, lambda scratch: scratch.write_text(text, encoding="utf-8"))

    def _read(self) -> Any:
        if not self.path.exists():
            return None
        try:
            saved = json.loads(self.path.read_bytes())
        except ValueError as error:
            raise self._damaged() from error
        except OSError as error:
            raise CommandError(f"cannot read {self.path}: {error.strerror}") from error
        if not isinstance(saved, dict):
            raise self._damaged()
        return saved

    def _damaged(self) -> CommandError:
        return CommandError(f"{self.path} is damaged, or no checksum of a pool. {self._go_on}")
