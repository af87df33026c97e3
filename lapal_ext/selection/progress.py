"""The one progress bar of the package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar for the body, which calls the yielded function with the amount of work since the last call.

    Args:
        what: the text before the bar.
        total: the amount of work, None if it is not known.
        shown: whether there is a bar.

    Raises:
        ImportError: ``shown`` is True, and rich is not installed.
    """
    if not shown:
        yield lambda _: None
        return
    try:
        from rich.progress import Progress
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install rich") from error
    with Progress(transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
