"""``lapal-ext demo``: two small experiments on scikit-learn's digits, in less than a minute."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from lapal_ext.cli.arguments import prepared, require, whole_number
from lapal_ext.cli.errors import CommandError

_NEEDS = ("sklearn", "matplotlib", "rich")
_PRINTED_NEW_LABELS = (1, 10, 50)
_DEFAULT_SEEDS = 6


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "demo",
        help="show on real digits what closed-form updates and sequential batches bring",
        description=(
            "Compare ways to absorb labels, and active-learning strategies, on scikit-learn's\n"
            "handwritten digits. The demo downloads nothing, takes less than a minute, prints\n"
            "tables and writes results.csv and learning_curves.png."
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
        help="repetitions on different splits, at least 2 (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    require("demo", "demo", _NEEDS)
    from rich.console import Console

    from lapal_ext.selection.progress import progress_bar
    from lapal_ext.study import experiment, figures, presets, report
    from lapal_ext.study.comparison import default_reference
    from lapal_ext.study.configuration import Source, environment
    from lapal_ext.study.records import Record

    folder = prepared(options.out)
    start = time.perf_counter()
    versions = environment()
    console = Console(highlight=False, markup=False)
    console.print(f"Kernels: {versions['kernels']}. Torch {versions['torch']}, one thread.", end="\n\n")
    configurations = presets.demo(options.seeds)
    total = sum(len(experiment.units(configuration)) for configuration in configurations)
    results, picture = folder / "results.csv", folder / "learning_curves.png"
    try:
        with (
            # What an experiment needs to be continued is not kept: another demo may use the same folder.
            tempfile.TemporaryDirectory(prefix=".demo-", dir=folder) as scratch,
            progress_bar("demo", total, shown=sys.stderr.isatty()) as advance,
        ):
            finished = []
            for configuration in configurations:
                part = Path(scratch, configuration.experiment)
                part.mkdir()
                experiment.run_experiment(part, configuration, Source(None), advance=advance)
                finished.append(experiment.read_experiment(part))
        experiment.write_csv(results, [record for done in finished for record in done.records], Record._fields)
        drawings = [figures.learning_curves(done, default_reference(done.configuration)) for done in finished]
        figures.write_figure(picture, drawings)
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror}") from error
    for done in finished:
        console.print(report.terminal(done, _PRINTED_NEW_LABELS), "")
    console.print(f"Wrote {results} and {picture} in {time.perf_counter() - start:.0f} s")
