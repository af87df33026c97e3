"""The time of a call, for what pytest-benchmark does not time."""

import statistics
import time
from collections.abc import Callable


def seconds(call: Callable[[], object], rounds: int = 9) -> float:
    """Median processor time of one call in one thread, after two to warm up.

    Processor time, since a neighbour on the same core doubles the other kind; on a quiet machine they are the same.
    """
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def fastest(call: Callable[[], object], budget: float = 0.5) -> float:
    """Least processor time of one call in one thread, over as many as the budget of seconds holds, five at least.

    What a machine can do, on one whose neighbours come and go: a median says what they left of it.
    """
    call()
    least, rounds, end = float("inf"), 0, time.perf_counter() + budget
    while rounds < 5 or time.perf_counter() < end:
        start = time.process_time()
        call()
        least = min(least, time.process_time() - start)
        rounds += 1
    return least


def wall_seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, for what runs in several threads."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
