"""Benchmarks time arms in turns, so that other load on the machine does not change their ratio."""

from collections.abc import Callable

import pytest

from benchmarks.harness.turns import Turns


class SharedMachine:
    """A simulated clock, on which work takes twice as long while the machine is loaded."""

    def __init__(self, is_loaded: Callable[[float], bool]) -> None:
        self.now, self._is_loaded = 0.0, is_loaded

    def clock(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds * (2 if self._is_loaded(self.now) else 1)

        return call


def rounds_in_turns(machine: SharedMachine, turns: Turns, call: Callable[[], None], count: int) -> list[float]:
    times = []
    for _ in range(count):
        turns.before_round()
        start = machine.now
        call()
        times.append(machine.now - start)
    turns.take()
    return times


@pytest.mark.parametrize("block", [1, 4])
def test_load_that_starts_halfway_does_not_change_the_ratio(block: int) -> None:
    # With blocks of one round, the load starts before round 26 of 50. Medians over all calls would mix both speeds.
    machine = SharedMachine(lambda now: now > 24.99)
    turns = Turns(lambda: machine.work(0.1), machine.clock, block)
    times = rounds_in_turns(machine, turns, machine.work(0.7), 50)
    assert max(times) > 1.9 * min(times)
    assert turns.ratio(times) == pytest.approx(7, rel=1e-9)
    assert turns.fastest_ratio(times) == pytest.approx(7, rel=1e-9)


def test_the_probe_is_called_once_per_turn() -> None:
    machine, probed = SharedMachine(lambda _: False), iter(range(100))
    turns = Turns(lambda: machine.work(0.1), machine.clock, 2, probe=lambda: float(next(probed)))
    rounds_in_turns(machine, turns, machine.work(0.7), 8)  # five turns
    assert turns.probed() == 2.0
    assert next(probed) == 5
    assert Turns(lambda: machine.work(0.1), machine.clock, 2).probed() is None
