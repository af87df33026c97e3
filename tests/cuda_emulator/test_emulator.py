"""The emulator finds the planted bugs, and no error in the same kernels without them."""

import ctypes

import pytest

from tests.cuda_emulator import planted
from tests.cuda_emulator.planted import BLOCK_SIZE, IN, ROUNDS

SCHEDULES = 20
SUMS = [sum(IN[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE]) for i in range(ROUNDS)]
FIRST = [IN[0], 0.0, 0.0, 0.0]
# What the healthy kernel writes.
RESULTS = {
    "read after write": SUMS,
    "write after read": SUMS,
    "add": [sum(SUMS[:3]), 0.0, 0.0, 0.0],
    "poison": FIRST,
    "poison candidate": FIRST,
    "bounds": FIRST,
    "global bounds": FIRST,
    "barrier": FIRST,
    "shuffle": FIRST,
    "shuffle order": FIRST,
    "exit": FIRST,
    "deadlock": FIRST,
    "pack": FIRST,
    "no blocks": FIRST,
}
ERRORS = {
    "bounds": "a write behind the end of shared memory",
    "barrier": "divergent barrier: some threads are at planted_bugs.cpp:",
    "shuffle": "divergent shuffle: some threads are at planted_bugs.cpp:",
    "exit": "lane",
    "deadlock": "deadlock: 32 threads wait for each other at planted_bugs.cpp:",
    "pack": "a misaligned access of 16 bytes at portability.h:",
    "no blocks": "a grid must have",
}
# Bugs that the emulator does not report, but that change the result.
WRONG = ["read after write", "write after read", "poison", "poison candidate"]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return planted.load()


@pytest.mark.parametrize("name", RESULTS)
def test_healthy_kernels_run(library: ctypes.CDLL, name: str) -> None:
    for seed in range(SCHEDULES):
        assert planted.run(library, name, healthy=True, seed=seed) == ("", RESULTS[name])


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_named_on_every_schedule(library: ctypes.CDLL, name: str) -> None:
    for seed in range(SCHEDULES):
        error, _ = planted.run(library, name, healthy=False, seed=seed)
        assert error.startswith("emulator: ")
        assert ERRORS[name] in error
    # The emulator still works after an error.
    assert planted.run(library, name, healthy=True, seed=0) == ("", RESULTS[name])


@pytest.mark.parametrize("name", WRONG)
def test_missing_barriers_and_poison_change_the_result_on_every_schedule(library: ctypes.CDLL, name: str) -> None:
    outcomes = [planted.run(library, name, healthy=False, seed=seed) for seed in range(SCHEDULES)]
    assert all(error == "" for error, _ in outcomes)
    assert sum(out != RESULTS[name] for _, out in outcomes) == SCHEDULES


def test_schedules_differ_and_repeat(library: ctypes.CDLL) -> None:
    outcomes = [planted.run(library, "read after write", healthy=False, seed=seed)[1] for seed in range(SCHEDULES)]
    again = [planted.run(library, "read after write", healthy=False, seed=seed)[1] for seed in range(SCHEDULES)]
    assert [str(out) for out in outcomes] == [str(out) for out in again]
    assert len({str(out) for out in outcomes}) > 1
