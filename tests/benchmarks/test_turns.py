"""Benchmarks compare arms call by call: a neighbour who slows the machine for a while leaves their ratio as it is."""

from collections.abc import Callable

import pytest

from benchmarks.harness.turns import Turns


class SharedMachine:
    """Time that passes with the work done on it, half as fast while a neighbour is there."""

    def __init__(self, neighbour: Callable[[float], bool]) -> None:
        self.now, self._neighbour = 0.0, neighbour

    def clock(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds * (2 if self._neighbour(self.now) else 1)

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
def test_a_neighbour_who_comes_halfway_leaves_the_ratio(block: int) -> None:
    # With a block of one round: before the 26th of 50. Medians of all calls would be of both kinds, and differ.
    machine = SharedMachine(lambda now: now > 24.99)
    turns = Turns(lambda: machine.work(0.1), machine.clock, block)
    times = rounds_in_turns(machine, turns, machine.work(0.7), 50)
    assert max(times) > 1.9 * min(times)
    assert turns.ratio(times) == pytest.approx(7, rel=1e-9)
    assert turns.fastest_ratio(times) == pytest.approx(7, rel=1e-9)


def test_a_probe_is_asked_at_every_turn() -> None:
    machine, probed = SharedMachine(lambda _: False), iter(range(100))
    turns = Turns(lambda: machine.work(0.1), machine.clock, 2, probe=lambda: float(next(probed)))
    rounds_in_turns(machine, turns, machine.work(0.7), 8)  # five turns
    assert turns.probed() == 2.0
    assert next(probed) == 5
    assert Turns(lambda: machine.work(0.1), machine.clock, 2).probed() is None
