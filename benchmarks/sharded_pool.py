"""A pool in shards: ``python -m benchmarks.sharded_pool`` (how much ranks communicate, and how long it takes).

Starts processes on this machine, each with its part of a pool in float16, selects with ``group=``, and prints per pick
the messages, the bytes that a rank sends, and the time of a pass and of the messages; then what that implies for 1e8
rows. The processes share the cores of one machine: the passes of more ranks than cores are no faster.
"""

import argparse
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed, multiprocessing

from lapal_ext import LastLayerLaplace, select_batch

_HUGE = 100_000_000  # rows


class Traffic(NamedTuple):
    """The communication of one selection, on one rank."""

    messages: int
    bytes: int
    seconds: float


class Meter:
    """Counts and times what goes through torch.distributed's functions."""

    def __init__(self) -> None:
        self._total = Traffic(0, 0, 0.0)
        distributed.all_reduce = self._metered(distributed.all_reduce, sent=0)
        distributed.all_gather = self._metered(distributed.all_gather, sent=1)

    def _metered(self, function, sent: int):
        def call(*args, **kwargs) -> None:
            start = time.perf_counter()
            function(*args, **kwargs)
            size = args[sent].numel() * args[sent].element_size()
            messages, size_so_far, seconds = self._total
            self._total = Traffic(messages + 1, size_so_far + size, seconds + time.perf_counter() - start)

        return call

    def read(self) -> Traffic:
        total, self._total = self._total, Traffic(0, 0, 0.0)
        return total


def _select(rank: int, size: int, folder: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(minutes=5), world_size=size, rank=rank
    )
    meter = Meter()
    generator = torch.Generator().manual_seed(0)
    labelled = torch.randn(200, options.features, generator=generator)
    posterior = LastLayerLaplace.fit_map(labelled, torch.arange(200) % options.classes, options.classes)
    generator.manual_seed(rank)
    rows = options.rows * (rank + 1) // size - options.rows * rank // size
    pool = torch.randn(rows, options.features, generator=generator).half()
    seconds, traffic = {}, {}
    for number in (1, 1, options.number):  # the first warms up
        distributed.barrier()
        start = time.perf_counter()
        select_batch(posterior, pool, number, options.acquisition, group=distributed.group.WORLD)
        seconds[number], traffic[number] = time.perf_counter() - start, meter.read()
    if rank == 0:
        picks = options.number - 1
        each = (seconds[options.number] - seconds[1]) / picks
        messages, sent, waited = ((b - a) / picks for a, b in zip(traffic[1], traffic[options.number], strict=True))
        torch.save((each, messages, sent, waited), f"{folder}/result")
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--features", type=int, default=384)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--number", type=int, default=50, help="picks")
    parser.add_argument("--acquisition", default="margin")
    options = parser.parse_args()
    print("| ranks | ms per pick | of which waiting and messages | messages | bytes a rank sends | 1e8 rows, ms |")
    print("|---:|---:|---:|---:|---:|---:|")
    for size in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(_select, (size, folder, options), size)
            each, messages, sent, waited = torch.load(Path(folder) / "result", weights_only=True)
        huge = (each - waited) * _HUGE / options.rows + waited
        print(f"| {size} | {1e3 * each:.2f} | {1e3 * waited:.2f} | {messages:.0f} | {sent:,.0f} | {1e3 * huge:,.0f} |")


if __name__ == "__main__":
    main()
