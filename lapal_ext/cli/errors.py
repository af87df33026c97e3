"""Errors of subcommands that are shown without a traceback."""


class CommandError(Exception):
    """The command cannot continue. The message says why, and what the user can do."""
