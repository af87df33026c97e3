"""Print the table of the peers: ``python -m benchmarks.peers``. Needs ``pip install -e ".[test,peers]"``.

Takes about four minutes, in one thread. A peer that is not installed is a row that says so.
"""

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from benchmarks.peers.comparison import measure
from benchmarks.peers.markdown import HEAD, line
from benchmarks.peers.rows import rows
from lapal_ext import ops

_PACKAGES = ("scikit-activeml", "bmdal_reg", "laplace-torch", "batchbald_redux", "scikit-learn", "torch")
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_PROCESSORS = Path("/proc/cpuinfo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", dest="select", default="", metavar="TEXT", help="only rows whose work has this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(_ONE_THREAD)  # for libraries that are loaded later
    kernels = ops.build_info()
    print(f"{_processor()}; {kernels['instruction_set'] if kernels['native'] else 'no kernels'}; one thread, processor")
    print(f"time, medians; {', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}.\n\n{HEAD}", flush=True)
    with threadpool_limits(1):
        for row in rows():
            if options.select.lower() in row.work.lower():
                for outcome in measure(row):
                    print(line(outcome), flush=True)
    print(
        "\nFaster by: how many times longer the peer takes, in turns with ours. MiB: growth of resident memory at most."
    )
    print("* measured on a part of the rows; its time is scaled up, its memory is not.")


def _processor() -> str:
    names = _PROCESSORS.read_text().splitlines() if _PROCESSORS.exists() else []
    name = next((text.partition(":")[2].strip() for text in names if text.startswith("model name")), "")
    return name or platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


if __name__ == "__main__":
    main()
