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
        raise CommandError(f"cannot read {error.filename}: {error.strerror}") from error
    except (NotPSDError, RankError, ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from error
