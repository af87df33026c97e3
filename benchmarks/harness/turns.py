"""Arms are timed in turns with the native one, so that other load on the machine slows both.

A shared machine may run at 70 % for a minute. Two arms timed a minute apart then differ by that load. The ratio of
calls timed side by side hardly depends on it.
"""

import statistics
from collections.abc import Callable
from itertools import pairwise

Call = Callable[[], object]
Clock = Callable[[], float]

TURN = 0.05  # seconds: many calls, of which only the first few find caches that the other arm has overwritten
_FEWEST, _MOST = 3, 31  # calls per turn


class Turns:
    """Times the native arm in turns with another arm: before every ``block`` rounds of the other, and at the end."""

    def __init__(self, prepare: Callable[[], Call], clock: Clock, block: int, probe: Clock | None = None) -> None:
        """``probe`` measures something about the machine at every turn."""
        self._prepare, self._clock, self._block, self._probe = prepare, clock, block, probe
        self._turns: list[list[float]] = []
        self._probed: list[float] = []
        self._n_rounds = 0

    def before_round(self) -> None:
        """Take a turn if one is due."""
        if self._n_rounds % self._block == 0:
            self.take()
        self._n_rounds += 1

    def take(self) -> None:
        times = [self._time()]
        n_calls = min(_MOST, max(_FEWEST, int(TURN / times[0])))
        self._turns.append(times + [self._time() for _ in range(n_calls - 1)])
        if self._probe is not None:
            self._probed.append(self._probe())

    def _time(self) -> float:
        call = self._prepare()
        start = self._clock()
        call()
        return self._clock() - start

    def ratio(self, rounds: list[float]) -> float:
        """How many times slower the other arm is for the same work: the median over its blocks.

        A block's median is compared with the mean of the medians of the turns on both sides of it.
        """
        blocks = [rounds[first : first + self._block] for first in range(0, len(rounds), self._block)]
        beside = [statistics.mean(both) for both in pairwise(map(statistics.median, self._turns))]
        return statistics.median(
            statistics.median(block) / native for block, native in zip(blocks, beside, strict=True)
        )

    def seconds(self) -> float:
        """The median of the native arm's calls."""
        return statistics.median(time for turn in self._turns for time in turn)

    def probed(self) -> float | None:
        """The median of what was probed."""
        return statistics.median(self._probed) if self._probed else None

    def fastest_ratio(self, rounds: list[float]) -> float:
        """How many times slower the other arm is by the fastest calls of both, which were disturbed least."""
        return min(rounds) / min(map(min, self._turns))
