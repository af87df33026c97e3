"""The one progress bar of the package."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int | None, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar for the body, which calls the yielded function with what it has done since the last call.

    Args:
        what: the text before the bar.
        total: what there is to do, None where it is not known.
        shown: whether there is a bar at all.

    Raises:
        ImportError: a bar is asked for, and rich is not installed.
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
