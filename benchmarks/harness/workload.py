"""How the arms of a workload are compared and timed."""

import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import pytest
import torch
from torch import Tensor

from benchmarks.harness.turns import TURN, Clock, Turns
from benchmarks.machine.rates import Work, gain
from lapal_ext import ops
from lapal_ext.ops import use_references


class Picks(NamedTuple):
    """A greedy selection, in order."""

    indices: Tensor  # [b] int64
    utilities: Tensor  # [b], each at the moment of its pick


Result = Tensor | tuple[Tensor, ...] | Picks
Prepare = Callable[[int], Callable[[], Result]]  # from a number of units: prepares untimed, returns the timed call

_MANY = 31  # rounds of the one-thread arm, so that some of them may find both cores otherwise idle
_TOLERANCE = 2e-3  # of the largest value: float32 sums in different orders, over a hundred dependent updates
_TIE = 1e-5  # relative: two utilities this close may change places, and every later pick depends on which came first


class TimeWorkload(Protocol):
    """The type of the fixture ``time_workload``; ``Timer.__call__`` explains the arguments."""

    def __call__(
        self,
        name: str,
        size: str,
        *,
        units: int,
        arms: dict[str, Prepare],
        targets: dict[str, float],
        checked: int = ...,
        rounds: dict[str, int] = ...,
        timed: dict[str, int] = ...,
        incomparable: Collection[str] = ...,
        work: Work | None = ...,
        note: str = ...,
    ) -> None: ...


ONE_THREAD = "one thread"
"""The native arm in one thread, timed where ``--threads`` allows more."""

SIZES = [(384, 10), (768, 100)]


def sizes(*targets: dict[str, float]) -> Callable[..., object]:
    """Both sizes, each with its own targets."""
    rows = [pytest.param(*size, target, id=f"{size[0]}-{size[1]}") for size, target in zip(SIZES, targets, strict=True)]
    return pytest.mark.parametrize(("n_features", "n_classes", "targets"), rows)


def arms(*names: str) -> Callable[..., object]:
    return pytest.mark.parametrize("arm", names)


def public_call(prepare: Prepare) -> dict[str, Prepare]:
    """The arms of a call into the package: with its kernels, with their references, with its kernels in one thread."""

    def prepare_reference(units: int) -> Callable[[], Result]:
        call = prepare(units)

        def call_reference() -> Result:
            with use_references():
                return call()

        return call_reference

    def prepare_alone(units: int) -> Callable[[], Result]:
        call = prepare(units)

        def call_alone() -> Result:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return call()
            finally:
                torch.set_num_threads(threads)

        return call_alone

    return {"torch": prepare_reference, "native": prepare, ONE_THREAD: prepare_alone}


class Timer:
    """Checks that all arms of a workload agree, then times one of them in turns with the native one."""

    def __init__(self, benchmark: Any, arm: str, clock: Clock, compared: set[str]) -> None:
        self._benchmark, self._arm, self._clock, self._compared = benchmark, arm, clock, compared

    def __call__(
        self,
        name: str,
        size: str,
        *,
        units: int,
        arms: dict[str, Prepare],
        targets: dict[str, float],
        checked: int | None = None,
        rounds: dict[str, int] | None = None,
        timed: dict[str, int] | None = None,
        incomparable: Collection[str] = (),
        work: Work | None = None,
        note: str = "",
    ) -> None:
        """Compare and time.

        Args:
            name: what the workload is.
            size: D/C.
            units: observations, picks, candidates or hypotheses in the whole workload.
            arms: name -> function of a number of units.
            targets: arm -> how many times faster than it the native arm has to be.
            checked: units that the comparison takes, all by default.
            rounds: for arms too slow for the usual number (as many as fit in half a second, 11 to 101).
            timed: units of an arm that is too slow to be timed in full; the table scales it, and marks it.
            incomparable: arms whose result differs on purpose.
            work: the least work of the whole workload, for the limit beside its time.
            note: a sentence about the result, printed below the table.
        """
        label = f"{name} {size}"
        if label not in self._compared:
            _compare(label, {arm: arms[arm] for arm in arms if arm not in incomparable}, checked or units)
            self._compared.add(label)
        count = (timed or {}).get(self._arm, units)
        self._benchmark.group = label if count == units else f"{label}: {count} of {units} timed"
        self._benchmark.extra_info.update(
            workload=name, size=size, arm=self._arm, scale=units / count, targets=_targets_here(targets), note=note
        )
        if self._arm == "native" and work is not None and torch.get_num_threads() == 1:
            self._benchmark.extra_info["limit"] = work.limit()
        prepare = arms[self._arm]
        n_rounds, block = ({ONE_THREAD: _MANY} | (rounds or {})).get(self._arm), 1
        if n_rounds is None:
            n_rounds, block = _rounds_and_block(prepare(count))
        else:
            warm_up = count if n_rounds >= 3 else min(count, checked or count)  # a full warm-up would take too long
            prepare(warm_up)()
        if self._arm == "native" or not ops.build_info()["native"]:
            self._benchmark.pedantic(_call, setup=lambda: ((prepare(count),), {}), rounds=n_rounds)
            return
        probe = gain if self._arm == ONE_THREAD else None
        turns = Turns(lambda: arms["native"](units), self._clock, block, probe)

        def set_up() -> tuple[tuple[Callable[[], Result]], dict[str, object]]:
            turns.before_round()
            return (prepare(count),), {}

        self._benchmark.pedantic(_call, setup=set_up, rounds=n_rounds)
        if self._benchmark.disabled:  # --benchmark-disable: the arms agree, and nothing is timed
            return
        turns.take()
        times = [units / count * taken for taken in self._benchmark.stats.stats.data]
        self._benchmark.extra_info.update(
            ratio=turns.ratio(times), fastest_ratio=turns.fastest_ratio(times), gain=turns.probed()
        )


def _targets_here(targets: dict[str, float]) -> dict[str, float]:
    """In one thread the targets relative to other arms; in several threads the target relative to one thread."""
    return {arm: factor for arm, factor in targets.items() if (arm == ONE_THREAD) == (torch.get_num_threads() > 1)}


def _call(call: Callable[[], Result]) -> Result:
    return call()


def _rounds_and_block(call: Callable[[], Result]) -> tuple[int, int]:
    """At least 11 rounds: a call of less than a millisecond reaches its steady speed only after dozens of calls."""
    call()
    start = time.perf_counter()
    call()
    taken = time.perf_counter() - start
    return min(101, max(11, int(0.5 / taken))), max(1, int(TURN / taken))


def _compare(label: str, arms: dict[str, Prepare], units: int) -> None:
    results = {name: prepare(units)() for name, prepare in arms.items()}
    expected = results["native"]
    for name, result in results.items():
        if isinstance(result, Picks):
            _compare_picks(f"{label}, {name} and native", result, expected)
            continue
        for value, wanted in zip(_as_tuple(result), _as_tuple(expected), strict=True):
            scale = 0.0 if wanted.dtype == torch.int64 else _TOLERANCE * float(wanted.abs().max())
            torch.testing.assert_close(
                value, wanted, rtol=0.0, atol=scale, msg=lambda text, arm=name: f"{label}, {arm} and native: {text}"
            )


def _compare_picks(label: str, picks: Picks, expected: Picks) -> None:
    """The same rows up to the first tie, and at least the first quarter of them."""
    parted = (picks.indices != expected.indices).nonzero()
    if len(parted) == 0:
        return
    first = int(parted[0])
    ours, theirs = (float(given.utilities[first]) for given in (expected, picks))
    assert 4 * first >= len(picks.indices), f"{label}: the rows differ from pick {first} on"
    assert abs(ours - theirs) <= _TIE * abs(ours), f"{label}: pick {first} has utility {theirs} where ours has {ours}"


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
