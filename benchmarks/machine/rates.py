"""What this machine can do: the rates that bound a kernel, and the time they leave for its work.

A rate is measured whenever it is used: other load may slow the machine for minutes, so a limit means something only
beside a call timed at the same moment. Every rate is that of one thread, by the fastest of many calls.

- copy bandwidth out of cache: ``copy_`` of 300 MB;
- read bandwidth out of cache: a sum over 300 MB, by torch, or by one, two, four or eight streams of addresses
  (``probe.cpp``), whichever is fastest, because a single stream may wait for memory most of the time;
- multiply-adds in registers and exponentials in the first-level cache: ``probe.cpp``. The exponential is the kernels'
  own, so the limit shows what is lost around it, not whether a faster exponential exists. Without a compiler, sgemm and
  ``torch.exp`` in cache are measured instead; kernels may be faster than those;
- sgemm: torch's own matrix product, 1536 x 1536, for comparison only. It is no limit where the BLAS was not written for
  this processor.
"""

import ctypes
import functools
import math
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness.timing import fastest, wall_seconds

_HERE = Path(__file__).parent
_BUDGET = 0.1  # seconds per rate
_STREAMS = (1, 2, 4, 8)


class Work(NamedTuple):
    """The least work of a call, in float32: arithmetic while memory is read, and passes over a cached tensor.

    It does not count reductions, logarithms, divisions and transpositions.
    """

    fmas: float = 0.0
    exps: float = 0.0
    bytes_read: float = 0.0  # out of cache
    passes: tuple[int, Tensor] | None = None  # (number, tensor); in cache if the machine has one that holds it

    def limit(self) -> float:
        """The least seconds that the work takes, at rates measured now."""
        arithmetic = (self.fmas and self.fmas * fma()) + (self.exps and self.exps * exp())
        reading = self.bytes_read and self.bytes_read * read()
        passes = 0.0 if self.passes is None else self.passes[0] * fastest(self.passes[1].sum, _BUDGET)
        return max(arithmetic, reading) + passes


def copied() -> float:
    """Seconds for one byte, read and write counted."""
    source, target = _out_of_cache()
    return fastest(lambda: target.copy_(source), _BUDGET) / (8 * len(source))


def read() -> float:
    """Seconds for one byte."""
    (source, _), code = _out_of_cache(), _probe()
    times = [fastest(source.sum, _BUDGET)]
    if code is not None:
        calls = (functools.partial(code.read_memory, source.data_ptr(), len(source), count) for count in _STREAMS)
        times += [fastest(call, _BUDGET) for call in calls]
    return min(times) / (4 * len(source))


def flop() -> float:
    """Seconds for one operation of sgemm."""
    square = torch.randn(1536, 1536)
    return fastest(lambda: square @ square, _BUDGET) / (2 * 1536**3)


def fma() -> float:
    """Seconds for one multiply-add in float32."""
    code, rounds = _probe(), 20_000
    return 2 * flop() if code is None else fastest(lambda: code.multiply_add(rounds), _BUDGET) / (rounds * 12 * 16)


def exp() -> float:
    """Seconds for one exponential in float32."""
    values, code = -5.0 * torch.rand(2048), _probe()
    if code is None:
        target = torch.empty_like(values)
        return fastest(lambda: torch.exp(values, out=target), _BUDGET) / 2048
    return fastest(lambda: code.exponential(values.data_ptr(), 2048, 100), _BUDGET) / (2048 * 100)


def gain() -> float:
    """How many times faster torch's threads multiply and add in registers than one thread, under the current load.

    Measured over some 60 ms of wall time, because threads start up to a millisecond apart.
    """
    code, threads, rounds = _probe(), torch.get_num_threads(), 6_000_000
    if code is None:
        return math.nan
    with ThreadPoolExecutor(threads) as pool:

        def share(part: int) -> None:
            list(pool.map(code.multiply_add, [part] * threads))

        share(1)  # starts the threads
        alone = wall_seconds(lambda: code.multiply_add(rounds))
        return threads * alone / wall_seconds(lambda: share(rounds))


@functools.cache
def _out_of_cache() -> tuple[Tensor, Tensor]:
    source = torch.randn(75_079_680)  # a whole number of pieces of probe.cpp
    return source, torch.empty_like(source)


@functools.cache
def _probe() -> ctypes.CDLL | None:
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    flags = ["-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probe.so"
        command = [compiler, *flags, "-I", str(_HERE.parents[1] / "csrc"), str(_HERE / "probe.cpp"), "-o", str(library)]
        if subprocess.run(command, check=False).returncode != 0:
            return None
        code = ctypes.CDLL(str(library))
        code.multiply_add.argtypes, code.multiply_add.restype = [ctypes.c_long], ctypes.c_float
        code.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_int]
        code.read_memory.restype = ctypes.c_float
        code.exponential.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
        code.exponential.restype = ctypes.c_float
        return code
