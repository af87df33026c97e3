"""``lapal-ext report``: make tables and figures of a finished experiment."""

import argparse
from pathlib import Path

from lapal_ext.cli.arguments import prepared, require
from lapal_ext.cli.errors import CommandError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "report",
        help="make tables and figures of a finished experiment",
        description="Write report.md and its figures into the folder of an experiment, and print their names.",
        epilog=(
            "example, with an experiment of a minute first:\n"
            "  lapal-ext experiment active-learning --data digits --seeds 2 --out results\n"
            "  lapal-ext report results"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that the experiment has as --out")
    parser.add_argument(
        "--reference",
        metavar="ARM",
        help="the arm that differences are taken from (default: base, margin or random, the first that was run)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    require("report", "experiment", ("sklearn", "matplotlib", "rich"))
    from lapal_ext.study.report import write_report

    if not options.folder.is_dir():
        raise CommandError(f"DIR must be the folder of an experiment, got {options.folder}")
    folder = prepared(options.folder)
    try:
        written = write_report(folder, options.reference)
    except FileNotFoundError as error:
        raise CommandError(
            f"{folder} holds no finished experiment: {error.filename} is missing. Run lapal-ext experiment to its end"
        ) from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot read or write in {folder}: {error.strerror}") from error
    for path in written:
        print(f"Wrote {path}")
