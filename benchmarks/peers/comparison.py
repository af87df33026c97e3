"""How one row is measured: a check that both sides do the same work, times in turns, and memory in new processes."""

import ctypes
import importlib
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.harness.turns import Turns

Call = Callable[[], Any]

_BUDGET = 5.0  # seconds for the rounds of both sides, after at least one of each
_MOST_ROUNDS = 9
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MIB = 1024  # KiB
_C = ctypes.CDLL(None)
_FORK = multiprocessing.get_context("fork")


class Peer(NamedTuple):
    """Another library's way to do the work."""

    name: str  # in the table
    module: str  # in this folder; it imports the library
    function: str  # from a task to a call
    part: float = 1.0  # of the work that is timed


class Row(NamedTuple):
    """One kind of work."""

    work: str
    size: str
    task: Callable[[], Any]
    ours: Callable[[Any], Call]
    check: Callable[[Any, Any, Any], str]  # task, our result, theirs -> what agrees; raises AssertionError
    peers: Sequence[Peer]


class Outcome(NamedTuple):
    """What was measured of one peer. ``gap`` says why nothing was."""

    work: str
    size: str
    peer: str
    gap: str = ""
    agreement: str = ""
    ours: float = 0.0  # seconds
    theirs: float = 0.0  # of the whole work, scaled up if only a part was timed
    ratio: float = 0.0  # theirs to ours, in turns
    memory: float = 0.0  # MiB
    their_memory: float = 0.0
    part: float = 1.0


def measure(row: Row, clock: Callable[[], float] = time.process_time) -> list[Outcome]:
    """Measure all peers of a row, each in a new process. Whatever fails is a gap."""
    return [_in_new_process(lambda peer=peer: _compare(row, peer, clock), row, peer) for peer in row.peers]


def load(peer: Peer) -> Callable[[Any], Call]:
    """The function that prepares the call of a peer. Raises ImportError if its library is missing."""
    function: Callable[[Any], Call] = getattr(importlib.import_module(f"benchmarks.peers.{peer.module}"), peer.function)
    return function


def _compare(row: Row, peer: Peer, clock: Callable[[], float]) -> Outcome:
    prepare = load(peer)
    task = row.task()
    ours, theirs = row.ours(task), prepare(task)
    memory = [_answer(lambda call=call: _peak(call)) for call in (ours, theirs)]  # before anything is in the heap
    expected, result = ours(), theirs()
    agreement = row.check(task, expected, result)
    del expected, result
    turns, times = Turns(lambda: ours, clock, 1), []
    end = time.perf_counter() + _BUDGET
    while not times or (time.perf_counter() < end and len(times) < _MOST_ROUNDS):
        turns.before_round()
        start = clock()
        theirs()
        times.append(clock() - start)
    turns.take()
    whole = [taken / peer.part for taken in times]
    return Outcome(
        row.work,
        row.size,
        peer.name,
        agreement=agreement,
        ours=turns.seconds(),
        theirs=statistics.median(whole),
        ratio=turns.ratio(whole),
        memory=memory[0],
        their_memory=memory[1],
        part=peer.part,
    )


def _peak(call: Call) -> float:
    """MiB by which the resident memory of this process grows at most during the call; NaN where that is unknown."""
    if not _RESET.exists():
        return float("nan")
    if hasattr(_C, "malloc_trim"):
        _C.malloc_trim(0)  # what is free already would be used again without growth
    _RESET.write_text("5")  # the peak begins again at what is resident now
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / _MIB


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def _in_new_process(compare: Callable[[], Outcome], row: Row, peer: Peer) -> Outcome:
    try:
        outcome: Outcome = _answer(compare)
    except ChildProcessError as error:
        return Outcome(row.work, row.size, peer.name, gap=str(error))
    return outcome


def _answer(function: Callable[[], Any]) -> Any:
    """The result of a function in a forked process. Raises ChildProcessError with the text of an exception."""
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_send, args=(function, sender))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads of this process wait, and hold no lock
        process.start()
    sender.close()
    try:
        error, value = receiver.recv()
    except EOFError:
        error, value = "the process died", None
    process.join()
    if error:
        raise ChildProcessError(error)
    return value


def _send(function: Callable[[], Any], sender: Connection) -> None:
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    try:
        answer = ("", function())
    except ModuleNotFoundError as error:
        answer = (f"not installed: {error}", None)
    except AssertionError as error:
        answer = (f"not the same work: {error}", None)
    except ChildProcessError as error:  # of a process of this one
        answer = (str(error), None)
    except Exception as error:  # noqa: BLE001 whatever another library raises is a gap of the table
        answer = (f"{type(error).__name__}: {error}", None)
    sender.send(answer)
