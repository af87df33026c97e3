"""The command line: one module per subcommand.

To add a subcommand, write ``cli/<name>.py`` with a function ``add_parser(subparsers)``, which sets the default ``run``
of its parser. Then add the module to ``_COMMANDS``. A subcommand imports optional packages when it runs.
"""

import argparse
import sys
from collections.abc import Sequence

import lapal_ext
from lapal_ext.cli import demo, doctor, experiment, extract, predict, report
from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select import command as select
from lapal_ext.cli.standard_streams import OutputError, print_error, usable_streams
from lapal_ext.interrupts import INTERRUPTED, MESSAGE, handle_again

_COMMANDS = (extract, select, predict, demo, experiment, report, doctor)
_FAILURE, _USAGE = 1, 2
_PIPE_CLOSED = 141  # as shells show the end by SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: of the command line, without the name of the program; by default those of this process.

    Returns:
        The exit status: 0 for success, 1 for a failure with a message, 2 for wrong usage, 130 after Ctrl-C, 141 without
        a message if standard output is a pipe that nobody reads any more.
    """
    with usable_streams():
        try:
            try:
                return _run(arguments)
            finally:
                sys.stdout.flush()  # of a help too, after which argparse raises SystemExit
        except OutputError as error:
            if error.is_closed:
                return _PIPE_CLOSED
            print_error(f"error: {error}")
            return _FAILURE
        except KeyboardInterrupt:
            print_error(MESSAGE)
            return INTERRUPTED


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help(sys.stderr)
        return _USAGE
    try:
        handle_again()
        options.run(options)
    except CommandError as error:
        print_error(f"error: {error}")
        return _FAILURE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lapal-ext",
        description="Deep active learning on last-layer features by closed-form Laplace updates.",
        epilog="example:\n  lapal-ext demo --out results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lapal_ext {lapal_ext.__version__}")
    parser.set_defaults(run=None)
    subparsers = parser.add_subparsers(title="commands", metavar="command")
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser
