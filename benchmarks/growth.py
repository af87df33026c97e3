"""How cost and memory grow, measured (W8): ``python -m benchmarks.growth --out growth.png``.

Each curve varies one letter alone. Expected: linear in N, E, M and C, quadratic in D, memory bounded by the tile.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.harness.timing import seconds
from lapal_ext import LastLayerLaplace, look_ahead, select_batch

_PROCESS = Path("/proc/self")


class Curve(NamedTuple):
    label: str
    letter: str
    expected: float  # slope
    sizes: list[int]
    prepare: Callable[[int], Callable[[], object]]


def make_posterior(n_features: int, n_classes: int) -> LastLayerLaplace:
    weight = 0.1 * torch.randn(n_classes, n_features)
    return LastLayerLaplace(weight).fit(torch.randn(200, n_features))


def update(n_features: int) -> Callable[[], object]:
    posterior, x, y = make_posterior(n_features, 10), torch.randn(100, n_features), torch.randint(10, (100,))
    return lambda: posterior.condition_on(x, y)


def select(n_pool: int) -> Callable[[], object]:
    posterior, pool = make_posterior(256, 10), torch.randn(n_pool, 256)
    return lambda: select_batch(posterior, pool, 20)


def hypotheses(n_eval: int = 5000, n_batches: int = 100, n_classes: int = 10) -> Callable[[], object]:
    posterior, pool, labels = make_posterior(128, n_classes), torch.randn(500, 128), torch.randint(n_classes, (500,))
    batches = torch.stack([torch.randperm(500)[:10] for _ in range(n_batches)])
    points, targets = torch.randn(n_eval, 128), torch.randint(n_classes, (n_eval,))
    return lambda: look_ahead(posterior, pool, batches, labels, points, targets, loss="cross_entropy")


def doubling(first: int, count: int) -> list[int]:
    return [first << power for power in range(count)]


CURVES = [
    Curve("update of 100 labels", "D", 2, doubling(256, 5), update),
    Curve("20 picks from a pool", "N", 1, doubling(5000, 6), select),
    Curve("look-ahead, points", "E", 1, doubling(2500, 6), lambda size: hypotheses(n_eval=size)),
    Curve("look-ahead, batches", "M", 1, doubling(100, 6), lambda size: hypotheses(n_batches=size)),
    Curve("look-ahead, classes", "C", 1, doubling(8, 6), lambda size: hypotheses(n_batches=400, n_classes=size)),
]


def slope(sizes: list[int], costs: list[float]) -> float:
    """Least squares in the logarithms of the last three sizes, where fixed costs count least."""
    x, y = ([math.log(value) for value in values[-3:]] for values in (sizes, costs))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return over / sum((a - middle_x) ** 2 for a in x)


def peak_mib(call: Callable[[], object]) -> float:
    """Highest resident memory during a call beyond what was resident before it; on Linux only."""
    (_PROCESS / "clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure() -> Iterator[tuple[Curve, list[float]]]:
    for curve in CURVES:
        costs = [seconds(curve.prepare(size), rounds=5) for size in curve.sizes]
        yield curve, costs
        found = slope(curve.sizes, costs)
        print(f"{curve.label}: {curve.letter}^{found:.2f}, expected {curve.letter}^{curve.expected:g}", flush=True)


def measure_memory() -> tuple[list[int], list[float]]:
    """Peak memory of look-aheads over more and more points; all E x (distinct rows) columns would grow with E."""
    sizes = doubling(2500, 7) if (_PROCESS / "clear_refs").exists() else []
    # A process for each size, so that no call reuses memory that the allocator kept from the one before.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return sizes, pool.map(_peak_of_look_ahead, sizes, chunksize=1)


def _peak_of_look_ahead(n_eval: int) -> float:
    torch.set_num_threads(1)
    hypotheses(n_eval=16, n_batches=1)()  # warm-up: the first call loads libraries
    return peak_mib(hypotheses(n_eval=n_eval))


def draw(out: Path, curves: list[tuple[Curve, list[float]]], memory: tuple[list[int], list[float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=(3, 2))
    for (curve, costs), marker in zip(curves, "osD^v", strict=True):
        relative = [size / curve.sizes[0] for size in curve.sizes]
        found = slope(curve.sizes, costs)
        text = f"{curve.label}: ${curve.letter}^{{{found:.2f}}}$ from {curve.letter}={curve.sizes[0]:,}"
        left.loglog(relative, [1e3 * cost for cost in costs], marker=marker, label=text)
    left.set_xscale("log", base=2)
    left.set(xlabel="size, relative to the smallest", ylabel="time of one call, ms", title="Cost")
    left.legend(fontsize=8)
    sizes, peaks = memory
    right.plot(sizes, peaks, "o-", label="measured peak")
    right.plot(sizes, [500 * size * 4 / 2**20 for size in sizes], "k--", label="all columns at once")
    right.set_xticks(sizes[4:], [f"{size:,}" for size in sizes[4:]])
    right.set(xlabel="evaluation points E", ylabel="memory beyond the inputs, MiB", title="Memory of a look-ahead")
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.png")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    draw(out, list(measure()), measure_memory())


if __name__ == "__main__":
    main()
