"""Runs kernels under a sanitizer in a separate process, whose output ``test_races_and_bounds.py`` reads.

    python -m tests.cuda_emulator.sanitized thread kernel predictive   every case of one op, one schedule each
    python -m tests.cuda_emulator.sanitized thread planted add         the kernel with the planted bug
    python -m tests.cuda_emulator.sanitized thread healthy add         the same one without it

The sanitizer, ``thread`` or ``address``, must be loaded before Python (``environment``). On an error it ends the
process with ``ERROR_STATUS``. The kind ``nothing`` only checks that the sanitizer starts.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.cuda_emulator import planted
from tests.cuda_emulator.build import CSRC, HERE, compiler, emulated, library
from tests.cuda_emulator.cases import calls_out_of_range, cases

ERROR_STATUS = 66
_LIBRARIES = {"thread": "libtsan.so", "address": "libasan.so"}
_OPTIONS = {
    "thread": {"TSAN_OPTIONS": f"halt_on_error=1:ignore_noninstrumented_modules=1:exitcode={ERROR_STATUS}"},
    "address": {"ASAN_OPTIONS": f"detect_leaks=0:exitcode={ERROR_STATUS}"},  # Python leaks by design
}


def compile_first(sanitizer: str, kind: str, name: str) -> None:
    """Compile outside of the sanitizer, which would slow the compiler down."""
    library(CSRC / "cuda" / "ops" / f"{name}.cu" if kind == "kernel" else HERE / "planted_bugs.cpp", sanitizer)


def environment(sanitizer: str) -> dict[str, str]:
    """What a process needs so that its Python runs under the sanitizer."""
    command = [compiler(), f"-print-file-name={_LIBRARIES[sanitizer]}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    preload = {"LD_PRELOAD": str(Path(done.stdout.strip()).resolve()), "OMP_NUM_THREADS": "1"}
    return os.environ | preload | _OPTIONS[sanitizer]


def main(sanitizer: str, kind: str, name: str) -> None:
    if kind in {"planted", "healthy"}:
        error, _ = planted.run(planted.load(sanitizer), name, healthy=kind == "healthy", seed=0)
        print(error)
    elif kind == "kernel":
        kernel = emulated(name, sanitizer)
        for case in cases():
            if case.name == name:
                kernel(**case.rounded())
        for _, args in calls_out_of_range(name):
            kernel(**args)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
