"""The median time of a call, for what runs outside pytest."""

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
