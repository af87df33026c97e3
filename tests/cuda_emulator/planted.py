"""Runs the kernels of ``planted_bugs.cpp``."""

import ctypes
from collections.abc import Sequence

from tests.cuda_emulator import build

BLOCK_SIZE, ROUNDS = 128, 4
IN = [float(1 + i % 7 + i // BLOCK_SIZE) for i in range(BLOCK_SIZE * ROUNDS)]


def load(sanitizer: str = "") -> ctypes.CDLL:
    library = ctypes.CDLL(str(build.library(build.HERE / "planted_bugs.cpp", sanitizer)))
    library.run_planted_bug.restype = ctypes.c_char_p
    return library


def run(library: ctypes.CDLL, name: str, *, healthy: bool, seed: int) -> tuple[str, Sequence[float]]:
    """Return the error of the launch, or an empty string, and what the kernel wrote."""
    inputs, out = (ctypes.c_float * len(IN))(*IN), (ctypes.c_float * ROUNDS)()
    library.emulator_set_seed(ctypes.c_uint64(seed))
    error = library.run_planted_bug(name.encode(), ctypes.c_bool(healthy), inputs, out)
    return error.decode(), list(out)
