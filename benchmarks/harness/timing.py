"""The time of a call, for what pytest-benchmark does not time."""

import statistics
import time
from collections.abc import Callable


def seconds(call: Callable[[], object], rounds: int = 9) -> float:
    """Median processor time of one call in one thread, after two warm-up calls.

    Not wall time: another process on the same core can double it. On a quiet machine both are the same.
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
    """Least processor time of one call in one thread, over as many calls as ``budget`` seconds hold, at least five.

    The fastest call shows what the machine can do; a median would also show what else ran on it.
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
