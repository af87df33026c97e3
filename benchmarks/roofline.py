"""What the machine can do, and the fraction of it that each kernel reaches: ``python -m benchmarks.roofline``.

One thread, and of every call the fastest of many. The limits are measured in the same run:

- copy and read bandwidth, out of cache: ``copy_`` and ``sum`` of 300 MB; for the updates of a matrix, ``copy_`` of one
  of its size;
- multiply-adds in registers and exponentials in the first-level cache: ``probe.cpp``. The exponential is the kernels'
  own, so that its limit says what is lost around it, not whether a better one exists. Without a compiler the rate of
  sgemm and ``torch.exp`` in cache stand in, which kernels may beat;
- sgemm: torch's own matrix product, 1536 x 1536. It limits nothing on a processor of another maker than its BLAS, and
  is there to compare with.

A limit counts the operations that the kernel's header names, as many as fit into the multiply-adds' rate, and nothing
of what it does besides: reductions, logarithms, divisions, transpositions.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.problems import make_problem
from benchmarks.timing import fastest
from lapal_ext import ops, select_batch
from tests.draws import cast
from tests.ops.examples import example

_HERE = Path(__file__).parent


class Machine(NamedTuple):
    """Seconds for one unit of each."""

    copied: float  # byte, read and write counted
    read: float  # byte
    flop: float  # of sgemm
    fma: float  # float32
    exp: float  # float32


class Kernel(NamedTuple):
    name: str
    call: Callable[[], object]
    limit: float  # seconds
    bound: str


def measure_machine() -> Machine:
    source = torch.randn(75_000_000)
    target = torch.empty_like(source)
    square = torch.randn(1536, 1536)
    flop = fastest(lambda: square @ square) / (2 * 1536**3)
    copied = fastest(lambda: target.copy_(source)) / (8 * len(source))
    read = fastest(source.sum) / (4 * len(source))
    return Machine(copied, read, flop, *(_probe() or (2 * flop, _torch_exp())))


def _torch_exp() -> float:
    values = torch.randn(32_768)
    target = torch.empty_like(values)
    return fastest(lambda: [torch.exp(values, out=target) for _ in range(100)]) / (100 * len(values))


def _probe() -> tuple[float, float] | None:
    compiler = shutil.which("c++")
    if compiler is None:
        return None
    flags = ["-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probe.so"
        command = [compiler, *flags, "-I", str(_HERE.parent / "csrc"), str(_HERE / "probe.cpp"), "-o", str(library)]
        if subprocess.run(command, check=False).returncode != 0:
            return None
        code = ctypes.CDLL(str(library))
        code.multiply_add.argtypes, code.multiply_add.restype = [ctypes.c_long], ctypes.c_float
        code.exponential.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long]
        code.exponential.restype = ctypes.c_float
        values = -5.0 * torch.rand(2048)
        rounds = 100_000
        fma = fastest(lambda: code.multiply_add(rounds)) / (rounds * 12 * 16)
        exp = fastest(lambda: code.exponential(values.data_ptr(), 2048, 1000)) / (2048 * 1000)
    return fma, exp


def kernels(machine: Machine) -> list[Kernel]:
    def of_op(name: str, limit: float, bound: str, storage: torch.dtype | None = None, **sizes: int) -> Kernel:
        op = ops.OPS[name]
        arguments = cast(op, example(name, **sizes), torch.float32, storage)
        if name == "selection_step_":
            arguments["logits"] = arguments["logits"].T.contiguous().T  # class-major, as the package keeps them
        if name == "lookahead_loss":
            arguments |= {"triangle": None, "beta": None, "variance": None}  # the plugin link, as in W4
        text = ", ".join(f"{letter}={size:,}" for letter, size in sizes.items())
        kind = "" if storage is None else f" {str(storage).removeprefix('torch.')}"
        backend = "" if ops.backend(name) == "native" else " (reference)"
        return Kernel(f"`{name}`{backend} {text}{kind}", lambda: op(**arguments), limit, bound)

    matrices = torch.randn(16, 768, 768)
    copies = torch.empty_like(matrices)
    found = [of_op("rank_one_update", fastest(lambda: copies.copy_(matrices)), "copy", B=16, D=768)]
    for b in (10, 100):
        copied = 0.75 * fastest(lambda: copies[0].copy_(matrices[0]))  # half of the matrix is read, all is written
        products = (b * 768**2 / 2 + b**2 * 768 / 2) * machine.fma
        found.append(of_op("rank_n_update", max(products, copied), "fma or copy", b=b, D=768))
    for N, E in ((100, 768), (1000, 8000)):
        found.append(of_op("inner_products", N * E * 768 * machine.fma, "fma", N=N, E=E, D=768))
    for C in (10, 100):
        points = 300 * 10_000 * C
        limit = points * (10 * machine.fma + machine.exp)
        found.append(of_op("lookahead_loss", limit, "fma + exp", N=1000, M=300, b=10, E=10_000, C=C))
        points = 1000 * 1000 * C
        limit = points * (45 * machine.fma + machine.exp)  # the two largest, the entropy
        found.append(of_op("expected_lookahead", limit, "fma + exp", N=1000, E=1000, C=C))
        double = 2 * machine.fma * (100**2 * C + 100**3 / 3)
        found.append(of_op("update_coefficients", double, "float64 fma", M=1, b=100, C=C, D=128))
        limit = max(10_000 * C * machine.exp, 10_000 * (C + 1) * 4 * machine.read)
        found.append(of_op("utility", limit, "exp or read", N=10_000, C=C))
        found.append(of_op("predictive", limit, "exp or read", N=10_000, C=C))
    limit = 2000 * 1000 * 10 * (10 * machine.fma + machine.exp)
    found.append(of_op("mc_predictive", limit, "fma + exp", N=2000, S=1000, C=10))
    for D in (384, 768):
        limit = 10_000 * D**2 / 2 * machine.fma
        found.append(of_op("predictive_variance", limit, "fma, half of Σ", N=10_000, D=D))
    for storage, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        limit = 200_000 * 384 * width * machine.read
        found.append(of_op("selection_step_", limit, "read", storage, N=200_000, D=384, C=10))
        found.append(of_op("bait_step_", limit, "read", storage, N=200_000, D=384))
        found.append(of_op("badge_step_", limit, "read", storage, N=200_000, D=384, C=10))
    return found + _calls(machine)


def _calls(machine: Machine) -> list[Kernel]:
    """W1 and BAIT beside the multiply-adds of all their products and BAIT's passes, and W4's largest product."""
    found = []
    b = 100
    problem = make_problem(384, 10)
    passes = b * fastest(problem.pool.sum)  # in cache, where the machine has one that holds 15 MB
    products = 3 * len(problem.pool) * 384**2 / 2 * machine.fma  # the Fisher matrix and two variances
    found.append(
        Kernel(
            f"W6 BAIT, {b} of 10,000 at 384/10",
            lambda p=problem: select_batch(p.posterior, p.pool, b, "bait", None, update_every=b),
            passes + products,
            "read + fma",
        )
    )
    for D, C in ((384, 10), (768, 100)):
        problem = make_problem(D, C)
        found.append(
            Kernel(
                f"W1, {b} updates at {D}/{C}, into a new posterior",
                lambda p=problem: p.posterior.condition_on(p.pool[:b], p.labels[:b], "newton"),
                # Columns, half of Sigma; half of the Gram matrix, the triangle; logits and mean.
                (1.5 * b * D**2 + b**2 * D + 2 * b * C * D) * machine.fma,
                "fma",
            )
        )
        rows: Tensor = torch.randn(1000, D)
        found.append(
            Kernel(
                f"W4's columns, 1000 × {D} × 8,000",
                lambda p=problem, rows=rows: ops.inner_products(rows, p.eval_features[:8000]),
                1000 * 8000 * D * machine.fma,
                "fma",
            )
        )
    return found


def main() -> None:
    torch.set_num_threads(1)
    machine = measure_machine()
    print(f"copy {1e-9 / machine.copied:.1f} GB/s, read {1e-9 / machine.read:.1f} GB/s,", end=" ")
    print(f"sgemm {1e-9 / machine.flop:.0f} GFLOP/s, fma {1e9 * machine.fma:.3f} ns, exp {1e9 * machine.exp:.3f} ns")
    print("\n| kernel | ms | limit, ms | bound by | of the limit |\n|---|---:|---:|---|---:|")
    for kernel in kernels(machine):
        took = fastest(kernel.call)
        share = f"{kernel.limit / took:.0%}"
        print(f"| {kernel.name} | {1e3 * took:.3g} | {1e3 * kernel.limit:.3g} | {kernel.bound} | {share} |", flush=True)


if __name__ == "__main__":
    main()
