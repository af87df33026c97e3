"""Checks of arguments, packages and folders before a subcommand begins."""

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

from lapal_ext.atomic_file import make_folder
from lapal_ext.cli.errors import CommandError

RECORD = ".pool.json"  # at the end of the name of the file that stands beside a label file
PACKAGES = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "torchmetrics": "torchmetrics",
}
"""Distributions by module, for the packages that extras install."""


def whole_number(at_least: int) -> Callable[[str], int]:
    """Return the ``type`` of an option that takes a whole number."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if number < at_least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {at_least}, got {text!r}")
        return number

    return parse


def positive_number(text: str) -> float:
    """Read a finite number above zero; the ``type`` of an option."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above zero, got {text!r}")
    return number


def require(command: str, extra: str, modules: Sequence[str]) -> None:
    """Raise CommandError if a module is not installed; the message names the extra that installs it."""
    if any(importlib.util.find_spec(module) is None for module in modules):
        *most, last = [PACKAGES[module] for module in modules]
        raise CommandError(f'lapal-ext {command} needs {", ".join(most)} and {last}: pip install "lapal_ext[{extra}]"')


def check_outputs(options: argparse.Namespace, outputs: Sequence[str], inputs: Sequence[str]) -> None:
    """Raise CommandError if a file that would be written is another one of the command, or somebody's answers.

    Args:
        options: of the command.
        outputs: names of options whose files are written; the first of them may be label files.
        inputs: names of options whose files are read. Not all need to exist.
    """
    from lapal_ext.pool.feature_files import FEATURE_SUFFIXES

    taken: dict[Path, str] = {}
    for name in (*inputs, *outputs):
        value = getattr(options, name, None)
        option = f"--{name.replace('_', '-')}"
        for given in value if isinstance(value, list) else [value]:
            path = Path(given) if isinstance(given, str) and name in inputs else given  # --classes may be a file
            if not isinstance(path, Path):
                continue
            other = taken.setdefault(path.resolve(), option)
            if name not in outputs:
                continue
            if other != option:
                raise CommandError(f"{option} must be another file than {other}, got {path}")
            folder = taken.get(path.resolve().parent)
            if folder is not None and path.suffix in FEATURE_SUFFIXES:
                raise CommandError(f"{option} must not lie in the folder of {folder}, which is read whole, got {path}")
            if path.name.endswith(RECORD) or (name in outputs[1:] and path.with_name(f"{path.name}{RECORD}").exists()):
                raise CommandError(f"{option} must not be a label file, which has answers, or its record, got {path}")


def prepared(folder: Path) -> Path:
    """Make the folder of ``--out`` if it is missing, and check that files can be written to it."""
    try:
        make_folder(folder)
    except FileExistsError as error:
        raise CommandError(f"--out must be a folder, but {folder} is a file") from error
    except OSError as error:
        raise CommandError(f"--out must be a folder that can be written to, got {folder}: {error.strerror}") from error
    return folder
