"""What the machine can do, and the fraction of it that each kernel reaches: ``python -m benchmarks.roofline``.

Everything runs in one thread, and the fastest of many calls counts. The limit of a kernel is measured before and after
it (machine/rates.py). It counts the operations that the kernel's header names. For an update of a matrix, the limit is
``copy_`` of a matrix of that size, where that takes longer.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness.timing import fastest
from benchmarks.machine.rates import Work, copied, exp, flop, fma, read
from benchmarks.workloads.problems import make_problem
from lapal_ext import ops, select_batch
from tests.draws import cast
from tests.ops.examples import example


class Kernel(NamedTuple):
    name: str
    call: Callable[[], object]
    limit: Callable[[], float]  # seconds, measured
    bound: str


def of_op(
    name: str, bound: str, limit: Work | Callable[[], float], storage: torch.dtype | None = None, **sizes: int
) -> Kernel:
    op = ops.OPS[name]
    arguments = cast(op, example(name, **sizes), torch.float32, storage)
    if name == "selection_step_":
        arguments["logits"] = arguments["logits"].T.contiguous().T  # class-major, as the package keeps them
    if name == "lookahead_loss":
        arguments |= {"triangle": None, "beta": None, "variance": None}  # the plugin link, as in W4
    text = ", ".join(f"{letter}={size:,}" for letter, size in sizes.items())
    kind = "" if storage is None else f" {str(storage).removeprefix('torch.')}"
    backend = "" if ops.backend(name) == "native" else " (reference)"
    measured = limit.limit if isinstance(limit, Work) else limit
    return Kernel(f"`{name}`{backend} {text}{kind}", lambda: op(**arguments), measured, bound)


def kernels() -> list[Kernel]:
    matrices = torch.randn(16, 768, 768)
    copies = torch.empty_like(matrices)

    def rank_n(b: int) -> Kernel:
        work = Work(fmas=b * 768**2 / 2 + b**2 * 768 / 2)

        def limit() -> float:  # half of the matrix is read, all is written
            return max(work.limit(), 0.75 * fastest(lambda: copies[0].copy_(matrices[0])))

        return of_op("rank_n_update", "fma or copy", limit, b=b, D=768)

    def all_copied() -> float:
        return fastest(lambda: copies.copy_(matrices))

    found = [of_op("rank_one_update", "copy", all_copied, B=16, D=768), rank_n(10), rank_n(100)]
    for N, E in ((100, 768), (1000, 8000)):
        found.append(of_op("inner_products", "fma", Work(fmas=N * E * 768), N=N, E=E, D=768))
    for C in (10, 100):
        points = 300 * 10_000 * C
        work = Work(fmas=10 * points, exps=points)
        found.append(of_op("lookahead_loss", "fma + exp", work, N=1000, M=300, b=10, E=10_000, C=C))
        points = 1000 * 1000 * C
        work = Work(fmas=45 * points, exps=points)  # the search for the two largest, and the entropy
        found.append(of_op("expected_lookahead", "fma + exp", work, N=1000, E=1000, C=C))
        work = Work(fmas=2 * (100**2 * C + 100**3 / 3))
        found.append(of_op("update_coefficients", "float64 fma", work, M=1, b=100, C=C, D=128))
        work = Work(exps=10_000 * C, bytes_read=10_000 * (C + 1) * 4)
        found.append(of_op("utility", "exp or read", work, N=10_000, C=C))
        found.append(of_op("predictive", "exp or read", work, N=10_000, C=C))
    points = 2000 * 1000 * 10
    found.append(of_op("mc_predictive", "fma + exp", Work(fmas=10 * points, exps=points), N=2000, S=1000, C=10))
    half = "fma, half of Σ"
    found += [of_op("predictive_variance", half, Work(fmas=10_000 * D**2 / 2), N=10_000, D=D) for D in (384, 768)]
    for storage in (torch.float32, torch.bfloat16, torch.float16):
        work = Work(bytes_read=200_000 * 384 * storage.itemsize)
        found.append(of_op("selection_step_", "read", work, storage, N=200_000, D=384, C=10))
        found.append(of_op("bait_step_", "read", work, storage, N=200_000, D=384))
        found.append(of_op("badge_step_", "read", work, storage, N=200_000, D=384, C=10))
        found.append(of_op("nearest_distance_", "read", work, storage, N=200_000, D=384, L=1))
    pairs = 10_000**2
    found.append(of_op("coverage_gain", "read", Work(bytes_read=pairs * 4), M=10_000, E=10_000))
    work = Work(fmas=pairs * 384, exps=pairs)
    found.append(of_op("kernel_coverage", "fma + exp", work, M=10_000, E=10_000, D=384))
    for C in (10, 77):
        points = 4000 * C
        work = Work(fmas=points * 385, exps=points)
        found.append(of_op("softmax_gradient", "fma + exp", work, N=4000, D=385, C=C, H=0))
        found.append(of_op("directional_derivatives", "exp", Work(exps=points), N=4000, C=C))
    return found


def calls() -> list[Kernel]:
    """Whole calls of W1 and BAIT, and W4's largest product; the limits are their multiply-adds and BAIT's passes."""
    found = []
    b = 100
    problem = make_problem(384, 10)
    products = 3 * len(problem.pool) * 384**2 / 2  # the Fisher matrix and two variances
    found.append(
        Kernel(
            f"W6 BAIT, {b} of 10,000 at 384/10",
            lambda p=problem: select_batch(p.posterior, p.pool, b, "bait", None, update_every=b),
            Work(fmas=products, passes=(b, problem.pool)).limit,
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
                Work(fmas=1.5 * b * D**2 + b**2 * D + 2 * b * C * D).limit,
                "fma",
            )
        )
        rows: Tensor = torch.randn(1000, D)
        found.append(
            Kernel(
                f"W4's columns, 1000 × {D} × 8,000",
                lambda p=problem, rows=rows: ops.inner_products(rows, p.eval_features[:8000]),
                Work(fmas=1000 * 8000 * D).limit,
                "fma",
            )
        )
    return found


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"copy {1e-9 / copied():.1f} GB/s, read {1e-9 / read():.1f} GB/s, sgemm {1e-9 / flop():.0f} GFLOP/s,", end=" "
    )
    print(f"fma {1e9 * fma():.4f} ns, exp {1e9 * exp():.3f} ns")
    print("\n| kernel | ms | limit, ms | bound by | of the limit |\n|---|---:|---:|---|---:|")
    for kernel in kernels() + calls():
        before = kernel.limit()
        took = fastest(kernel.call)
        limit = min(before, kernel.limit())
        print(
            f"| {kernel.name} | {1e3 * took:.3g} | {1e3 * limit:.3g} | {kernel.bound} | {limit / took:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
