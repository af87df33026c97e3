"""Large results of the updates reuse memory that earlier ones released (csrc/torch/recycled_memory.h)."""

import os
import queue
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from lapal_ext import ops
from tests.draws import Draw
from tests.native import require_native

SIZE = 256  # 256 kB in float32, above the threshold set below, from which on the C library calls mmap
PAGE = 4096

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or torch.__version__ < "2.11",
    reason="memory is reused with glibc, by torch 2.11 and later",
)

# Prints the page faults of ten updates, then the MB of memory that several large results, and a very large one, leave.
_MEASURE = """
import resource, sys, torch
from lapal_ext import LastLayerLaplace, ops

torch.set_num_threads(1)
size = int(sys.argv[1])
features, labels = torch.randn(10, size), torch.arange(10) % 2
posterior = LastLayerLaplace(torch.zeros(2, size)).fit(features)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for count in range(13):
    if count == 3:
        before = faults()
    posterior.update(features, labels)
print(faults() - before)

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1000

def results(count, megabytes):
    size = int((megabytes * 1e6 / 4) ** 0.5)
    matrix, row = torch.zeros(1).expand(size, size), torch.ones(1, size)
    return [ops.rank_n_update(matrix, row, torch.ones(1), None) for _ in range(count)]

for count, megabytes in ((9, 30), (1, 200)):
    before = anonymous()
    results(count, megabytes)
    print(anonymous() - before)
"""


@pytest.fixture(autouse=True)
def require_kernels() -> None:
    require_native("rank_n_update", "cpu")


@pytest.fixture(scope="module")
def measured() -> tuple[int, float, float]:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("a sanitizer's allocator keeps blocks of its own")
    # The C library gets every block of this size from the system, and returns it at once.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(SIZE * 1024 // 2), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _MEASURE, str(SIZE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    faults, several, one = done.stdout.split()
    return int(faults), float(several), float(one)


def test_updates_reuse_pages(measured: tuple[int, float, float]) -> None:
    assert measured[0] < 10 * SIZE * SIZE * 4 / PAGE / 4  # a quarter of what ten new covariances would take


def test_little_memory_is_kept(measured: tuple[int, float, float]) -> None:
    _, several, one = measured
    assert several < 150  # of 270 MB
    assert one < 50  # of 200 MB, which is more than may be kept


def covariances(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    rows, weights = draw.normal(3, SIZE).float(), draw.normal(3).float()
    return torch.eye(SIZE), rows, weights


def test_a_result_keeps_its_memory_while_any_view_of_it_lives(draw: Draw) -> None:
    matrix, rows, weights = covariances(draw)
    first = ops.rank_n_update(matrix, rows, weights, None)
    kept, array = first[5:9].clone(), first.numpy()[5:9]
    view = first[5:9]
    del first
    for scale in range(2, 8):
        ops.rank_n_update(scale * matrix, rows, weights, None)
        ops.rank_one_update((scale * matrix)[None], rows[:1], weights[:1].abs())
    assert torch.equal(view, kept)
    del view
    ops.rank_n_update(9.0 * matrix, rows, weights, None)
    assert torch.equal(torch.from_numpy(array), kept)


def test_a_result_may_be_dropped_by_another_thread(draw: Draw) -> None:
    matrix, rows, weights = covariances(draw)
    wanted = [ops.rank_n_update(scale * matrix, rows, weights, None) for scale in range(1, 5)]
    dropped: queue.Queue[Tensor | None] = queue.Queue()
    wrong = []

    def work(number: int) -> None:
        for _ in range(50):
            result = ops.rank_n_update((number + 1) * matrix, rows, weights, None)
            if not torch.equal(result, wanted[number]):
                wrong.append(number)
            dropped.put(result)

    def drop() -> None:
        while dropped.get() is not None:
            pass

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    dropper = threading.Thread(target=drop)
    for thread in (dropper, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    dropped.put(None)
    dropper.join()
    assert wrong == []
