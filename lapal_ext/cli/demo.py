"""``lapal-ext demo``: the study on scikit-learn's bundled digits, in under a minute."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lapal_ext.cli.arguments import prepared, require, whole_number
from lapal_ext.cli.errors import CommandError

if TYPE_CHECKING:
    from lapal_ext.study.run import Progress, Settings

_NEEDS = ("sklearn", "matplotlib", "rich")
_TABLE_NEW_LABELS = (1, 10, 50)
_DEFAULT_SEEDS = 6


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="show on real digits what absorbing labels and sequential batches bring",
        description=(
            "Compare ways to absorb labels, and active-learning strategies, on scikit-learn's\n"
            "bundled handwritten digits. Downloads nothing, takes less than a minute, prints\n"
            "two tables and writes results.csv and learning_curves.png."
        ),
        epilog="example:\n  lapal-ext demo --out results --seeds 20",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("lapal-ext-demo"),
        metavar="DIR",
        help="folder for the results, made if it is missing (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=whole_number(2),
        default=_DEFAULT_SEEDS,
        metavar="N",
        help="repetitions on other splits, at least 2; the time grows with it (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    require("demo", "demo", _NEEDS)
    from lapal_ext.study.run import Settings

    show_study(prepared(options.out), Settings(seeds=options.seeds))


def show_study(folder: Path, settings: "Settings") -> None:
    """Run the study, leave its files in a folder that exists, and print its tables.

    Raises:
        CommandError: a file cannot be written.
    """
    from rich.console import Console

    from lapal_ext.study import report
    from lapal_ext.study.figures import draw_learning_curves
    from lapal_ext.study.run import run_study

    start = time.perf_counter()
    console = Console(highlight=False, markup=False)
    console.print("Data:     scikit-learn's load_digits, 1797 digits of 64 pixels, 10 classes")
    console.print(f"Numbers:  mean ± standard error of {settings.seeds} seeds")
    console.print(f"Kernels:  {report.kernels_used()}")
    console.print(f"Machine:  torch {torch.__version__}, one thread", end="\n\n")
    with _progress_bars() as progress:
        records = run_study(settings, progress)
    results, picture = folder / "results.csv", folder / "learning_curves.png"
    try:
        report.write_csv(results, records)
        draw_learning_curves(picture, records)
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror}") from error
    console.print(report.updating_table(records, _TABLE_NEW_LABELS), report.UPDATING_NOTES, "", sep="\n")
    console.print(report.active_learning_table(records), report.ACTIVE_NOTES, "", sep="\n")
    console.print(f"Wrote {results} and {picture} in {time.perf_counter() - start:.0f} s")


@contextmanager
def _progress_bars() -> Iterator["Progress"]:
    """One bar per experiment on a terminal's standard error, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    from lapal_ext.study.protocols import ACTIVE_LEARNING, UPDATING

    console = Console(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        titles = {UPDATING: "absorbing labels", ACTIVE_LEARNING: "active learning"}
        tasks = {name: bars.add_task(title, total=None, start=False) for name, title in titles.items()}

        def advance(experiment: str, done: int, total: int) -> None:
            bars.start_task(tasks[experiment])
            bars.update(tasks[experiment], completed=done, total=total)

        yield advance
