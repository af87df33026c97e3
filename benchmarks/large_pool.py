"""A pool that stays in its file: ``python -m benchmarks.large_pool`` (Linux; 1.6 GB of disk for two million rows).

Writes random features, selects from the file, and prints the time per pick and the growth of anonymous memory, which is
the memory that the system cannot drop and read again from the file.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from typing_extensions import Self

from lapal_ext import LastLayerLaplace, select_batch

_TILE = 50_000  # rows written at a time
_STATUS = Path("/proc/self/status")


def write_pool(path: Path, rows: int, centres: Tensor) -> None:
    """Half-precision features: one of the centres, in turn, plus N(0, 1)."""
    pool = open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, centres.shape[1]))
    generator = np.random.default_rng(0)
    for start in range(0, rows, _TILE):
        tile = pool[start : start + _TILE]
        of_rows = centres.numpy()[np.arange(start, start + len(tile)) % len(centres)]
        tile[:] = of_rows + generator.standard_normal(tile.shape, dtype=np.float32)
    pool.flush()


def anonymous_mib() -> float:
    """Anonymous memory of this process."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


class PeakMemory:
    """Highest anonymous memory while it is entered, sampled every few milliseconds."""

    def __enter__(self) -> Self:
        self.mib, self._done = anonymous_mib(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.mib = max(self.mib, anonymous_mib())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--number", type=int, default=100, help="picks")
    parser.add_argument("--acquisition", default="margin", help="as in select_batch")
    parser.add_argument("--references", type=int, help="of select_batch, for uherding and maxherding")
    parser.add_argument("--memory", type=float, help="of select_batch, in MiB")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory = None if options.memory is None else options.memory * 2**20
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(options.classes, options.features, generator=generator)
    labels = torch.arange(200) % options.classes
    labelled = centres[labels] + torch.randn(200, options.features, generator=generator)
    posterior = LastLayerLaplace.fit_map(labelled, labels, options.classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.npy"
        write_pool(path, options.rows, centres)
        select_batch(posterior, labelled, 2, options.acquisition)  # warm-up: torch loads libraries at its first call
        before, seconds = anonymous_mib(), {}
        with PeakMemory() as peak:
            for number in (1, options.number):
                start = time.perf_counter()
                select_batch(
                    posterior,
                    path,
                    number,
                    options.acquisition,
                    labelled=labelled,
                    memory=memory,
                    references=options.references,
                )
                seconds[number] = time.perf_counter() - start
        size = path.stat().st_size / 2**20
    per_pick = (seconds[options.number] - seconds[1]) / (options.number - 1)
    print(
        f"{options.acquisition}: {options.rows:,} rows x {options.features} in float16, {size:,.0f} MiB; "
        f"{options.classes} classes; "
        f"{options.number} picks in {seconds[options.number]:.1f} s, the first {seconds[1]:.1f} s, each other "
        f"{1000 * per_pick:.0f} ms; anonymous memory grew by {peak.mib - before:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
