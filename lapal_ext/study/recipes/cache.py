"""A folder of feature sets, each with its SHA-256 in a second file in the format of ``sha256sum``."""

import os
from pathlib import Path

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.feature_file import checksum, load_features, save_features
from lapal_ext.study.recipes.recipe import Made


def folder() -> Path:
    """``$LAPAL_EXT_CACHE``, by default ``~/.cache/lapal_ext``."""
    return Path(os.environ.get("LAPAL_EXT_CACHE") or Path.home() / ".cache" / "lapal_ext")


def matches(path: Path) -> bool:
    """Whether the file exists and has the checksum that was written for it."""
    try:
        return _checksum_file(path).read_text(encoding="utf-8") == _checksum_line(path)
    except (OSError, UnicodeDecodeError):
        return False


def keep(path: Path, made: Made) -> None:
    """Write a feature set and its checksum.

    An interruption leaves the old files, or a file that does not match its checksum.

    Raises:
        StorageError: ``made`` is no feature set in float16.
        OSError: a file cannot be written.
    """

    def write(scratch: Path) -> None:
        save_features(scratch, made.train, made.test, made.class_names)
        load_features(scratch)

    replace_file(path, write)
    line = _checksum_line(path)
    replace_file(_checksum_file(path), lambda scratch: scratch.write_text(line, encoding="utf-8"))


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _checksum_line(path: Path) -> str:
    return f"{checksum(path)}  {path.name}\n"
