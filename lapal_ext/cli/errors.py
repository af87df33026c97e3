"""What a subcommand raises when the user, not a traceback, can put it right."""


class CommandError(Exception):
    """The command cannot go on; its message says why and what would help."""
