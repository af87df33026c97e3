"""Threads and forks: all calls in 8 threads at once, and in children of a process that has used the kernels.

pytest -m slow tests/fuzz/test_threads.py
"""

import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lapal_ext import look_ahead, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.ops import OPS
from tests.budget import outcome
from tests.draws import cast
from tests.fuzz.calls import bits
from tests.fuzz.processes import python
from tests.fuzz.tally import count
from tests.ops.examples import VARIANTS, example
from tests.problems import make_problem

CAMPAIGN = "threads and forks"
THREADS = 8
SIZES = {"N": 301, "E": 151, "D": 17, "C": 13, "b": 5, "M": 7, "S": 7, "B": 7}


def calls() -> dict[str, Callable[[], list[object]]]:
    """Every variant of every op, and every acquisition, on arguments that all threads share."""
    made: dict[str, Callable[[], list[object]]] = {}
    for name, variant in VARIANTS:
        args = cast(OPS[name], example(name, variant, **SIZES), torch.float32)
        made[f"{name} {variant}"] = lambda op=OPS[name], args=args: list(outcome(op, op, args).values.values())
    posterior, pool, labels, points, _ = make_problem(dtype=torch.float32)

    def select(acquisition: str) -> list[object]:
        generator = torch.Generator().manual_seed(0)
        return list(select_batch(posterior, pool, 4, acquisition, generator=generator))

    for acquisition in ACQUISITIONS:
        made[f"select_batch {acquisition}"] = lambda acquisition=acquisition: select(acquisition)
    batches = torch.arange(12).view(4, 3)
    made["look_ahead"] = lambda: [look_ahead(posterior, pool, batches, labels, points)]
    made["update"] = lambda: [posterior.condition_on(pool, labels)]
    return made


def check_threads(rounds: int) -> None:
    alone = {name: [bits(part) for part in call()] for name, call in calls().items()}
    together, start, faults = calls(), threading.Barrier(THREADS), []

    def work(number: int) -> None:
        # Before it calls get_num_threads, a new thread has OpenMP's default number of threads, not that of
        # set_num_threads. The bits of torch's matrix products, used where there are no kernels, depend on it.
        assert torch.get_num_threads() == 1
        names = list(together)
        start.wait()
        for turn in range(rounds * len(names)):
            name = names[(turn + number * 3) % len(names)]
            try:
                if [bits(part) for part in together[name]()] != alone[name]:
                    faults.append(f"{name} gave other bits")
            except Exception as error:  # noqa: BLE001 - an error in a thread must fail the test
                faults.append(f"{name}: {error!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[:5]
    count(
        CAMPAIGN, f"calls from {THREADS} threads at once, each with the bits of one", rounds * THREADS * len(together)
    )


def test_threads_give_the_bits_of_one() -> None:
    check_threads(1)


@pytest.mark.slow
def test_threads_give_the_bits_of_one_many_times() -> None:
    check_threads(20)


def test_pending_rows_are_added_once_when_threads_read_a_precision() -> None:
    posterior, pool, labels, *_ = make_problem()
    wanted = posterior.condition_on(pool[:9], labels[:9]).precision
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            queued, start = posterior.condition_on(pool[:9], labels[:9]), threading.Barrier(THREADS)
            read: list[Tensor] = []

            def work(queued=queued, start=start, read=read) -> None:
                start.wait()
                read.append(queued.precision)

            threads = [threading.Thread(target=work) for _ in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(read) == THREADS
            assert all(torch.equal(value, wanted) for value in [*read, queued.precision])
            count(CAMPAIGN, "precisions read by 8 threads at once")
    finally:
        sys.setswitchinterval(interval)


FORK = """
import multiprocessing, os, sys, warnings
import torch
from lapal_ext import ops
from tests.fuzz.calls import bits
from tests.fuzz.test_threads import calls
warnings.simplefilter("ignore")
torch.set_num_threads(int(sys.argv[1]))
large = torch.randn(20000, 64), torch.randn(64, 64)
ops.predictive_variance(large[0], large[1] @ large[1].T)  # so that the threads of the parent exist
ops.inner_products(large[0], large[0][:200])
made = calls()
for call in made.values():
    call()  # with threads that a child does not inherit
threads = torch.get_num_threads()
torch.set_num_threads(1)  # as in a child: the bits of torch's matrix products depend on it
wanted = {name: [bits(part) for part in call()] for name, call in made.items()}
torch.set_num_threads(threads)
count = 0

def child(number):
    assert torch.get_num_threads() == 1  # a child inherits none of OpenMP's threads
    ops.predictive_variance(large[0], large[1] @ large[1].T)
    return sum([bits(part) for part in call()] == wanted[name] for name, call in made.items())

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, number):
        return child(number)

with multiprocessing.get_context("fork").Pool(2) as pool:
    counts = pool.map_async(child, range(4)).get(timeout=600)
loader = torch.utils.data.DataLoader(Rows(), num_workers=2, timeout=600, multiprocessing_context="fork")
counts += [int(batch) for batch in loader]
assert counts == [len(made)] * 8, (counts, len(made))
print(sum(counts))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_forked_children_give_the_bits_of_the_parent(threads: int) -> None:
    """A child that used two threads like its parent would wait for threads that the fork did not copy."""
    done = python(FORK, threads, environment={"OMP_NUM_THREADS": str(threads)})
    count(CAMPAIGN, "calls in forked workers, each with the bits of the parent", int(done))
