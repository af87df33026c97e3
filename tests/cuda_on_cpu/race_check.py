"""Runs kernels under ThreadSanitizer, in a process of its own: ``test_races.py`` starts it and reads what it prints.

    python -m tests.cuda_on_cpu.race_check kernel predictive    every case of one op, one schedule each
    python -m tests.cuda_on_cpu.race_check planted add          the kernel with the planted bug
    python -m tests.cuda_on_cpu.race_check healthy add          the same one without it

The sanitizer must be in the process before Python is (``environment``); it ends a process that saw a race with
``RACE_STATUS``. An empty kind or name runs nothing and only shows that the sanitizer starts here.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.cuda_on_cpu import planted
from tests.cuda_on_cpu.build import CSRC, HERE, compiler, emulated, library
from tests.cuda_on_cpu.cases import cases

RACE_STATUS = 66


def compile_first(kind: str, name: str) -> None:
    """Compile outside of the sanitizer, which would slow the compiler down."""
    library(CSRC / "cuda" / f"{name}.cu" if kind == "kernel" else HERE / "planted_bugs.cpp", sanitize=True)


def environment() -> dict[str, str]:
    """What a process needs so that its Python runs under the sanitizer."""
    done = subprocess.run([compiler(), "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    options = f"ignore_noninstrumented_modules=1:exitcode={RACE_STATUS}"
    sanitizer = str(Path(done.stdout.strip()).resolve())
    return os.environ | {
        "LD_PRELOAD": sanitizer,
        "TSAN_OPTIONS": options,
        "LAPAL_EXT_EMULATOR_SANITIZE": "1",
        "OMP_NUM_THREADS": "1",
    }


def main(kind: str, name: str) -> None:
    if kind in {"planted", "healthy"}:
        error, _ = planted.run(planted.load(sanitize=True), name, healthy=kind == "healthy", seed=0)
        print(error)
    elif kind == "kernel":
        kernel = emulated(name)
        for case in cases():
            if case.name == name:
                kernel(**case.rounded())
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
