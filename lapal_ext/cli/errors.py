"""Errors of subcommands that are shown without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class CommandError(Exception):
    """The command cannot continue. The message says why, and what the user can do."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of the package and of files into a CommandError with the same message."""
    from lapal_ext.errors import NotPSDError, RankError

    try:
        yield
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        where = "" if error.filename is None else f"cannot read or write {error.filename}: "
        raise CommandError(f"{where}{reason}") from error
    except (NotPSDError, RankError, ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from error
