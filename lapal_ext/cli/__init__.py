"""The command line: one module per subcommand.

To add a subcommand, write ``cli/<name>.py`` with a function ``add_parser(subparsers)``, which sets the default ``run``
of its parser. Then add the module to ``_COMMANDS``. A subcommand imports optional packages when it runs.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import lapal_ext
from lapal_ext.cli import demo, doctor, experiment, extract, predict, report
from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select import command as select
from lapal_ext.interrupts import INTERRUPTED, MESSAGE, handle_again

_COMMANDS = (extract, select, predict, demo, experiment, report, doctor)
_FAILURE, _USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        arguments: of the command line, without the name of the program; by default those of this process.

    Returns:
        The exit status: 0 for success, 1 for a failure with a message, 2 for wrong usage, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 may lack a letter of a name or a text
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is None:
        parser.print_help(sys.stderr)
        return _USAGE
    try:
        handle_again()
        options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return _FAILURE
    except BrokenPipeError:  # the reader of the output has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it when it exits
        return _FAILURE
    except KeyboardInterrupt:
        print(MESSAGE, file=sys.stderr)
        return INTERRUPTED
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
