"""The exponentials that every softmax uses are within 2 ulp: csrc/shared/exponential.h, csrc/cpu/avx512/softmax.h.

The latter is 2^x, of logits in units of log 2, in the instructions of AVX-512.
"""

import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

_HERE = Path(__file__).parent
_CSRC = _HERE.parents[1] / "csrc"
_FLAGS = ["-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
_MACHINES = {
    "baseline": [],
    "this processor": ["-march=native"],
}  # without and, on most machines, with fused multiply-add
_DTYPES = {"float": np.float32, "double": np.float64, "avx512": np.float32}
_EXACT = {"float": np.exp, "double": np.exp, "avx512": np.exp2}
_SMALLEST = {"float": -87.33, "double": -708.39, "avx512": -126.0}
_PER_EXPONENT = 4096
_CASES = [(machine, name) for machine in _MACHINES for name in ("float", "double")] + [("baseline", "avx512")]

Call = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The code, compiled for one of the machines."""
    compiler = shutil.which("c++")
    if compiler is None or not _CSRC.is_dir():
        reason = "no C++ compiler, or no csrc/ to compile"
        if os.environ.get("LAPAL_EXT_REQUIRE_NATIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)

    @functools.cache
    def compile_for(machine: str) -> ctypes.CDLL:
        library = tmp_path_factory.mktemp("exponential") / "exponential.so"
        command = [compiler, *_FLAGS, *_MACHINES[machine], f"-I{_CSRC}", str(_HERE / "exponential.cpp")]
        subprocess.run([*command, "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))

    return compile_for


@pytest.fixture(params=_CASES, ids=[f"{name} on {machine}" for machine, name in _CASES])
def case(request: pytest.FixtureRequest, compiled: Callable[[str], ctypes.CDLL]) -> tuple[str, Call]:
    """The name of an exponential, and the function from arrays to arrays."""
    machine, name = request.param
    code = compiled(machine)
    if name == "avx512" and not hasattr(code, "exponentials_avx512"):
        pytest.skip("this compiler makes no code for several instruction sets")

    def call(x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x, dtype=_DTYPES[name])
        out = np.empty_like(x)
        function = getattr(code, f"exponentials_{name}")
        function.restype = ctypes.c_bool if name == "avx512" else None
        ran = function(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), len(x))
        if name == "avx512" and not ran:
            pytest.skip("this processor has no AVX-512")
        return out

    return name, call


def every_exponent(name: str) -> np.ndarray:
    """Arguments of every binary exponent down to where exp(x) rounds to one, and near every power of two of exp(x)."""
    dtype = _DTYPES[name]
    generator = np.random.default_rng(0)
    exponents = np.arange(-np.finfo(dtype).nmant - 4, 10)
    mantissas = 1 + generator.random((len(exponents), _PER_EXPONENT))
    octave = 1.0 if name == "avx512" else np.log(2)
    powers = np.arange(0, -_SMALLEST[name] / octave, 0.5)  # and the halves, where n changes
    near = (powers[:, None] + 1e-3 * generator.standard_normal((len(powers), 64))) * octave
    x = -np.concatenate([(np.ldexp(mantissas, exponents[:, None])).ravel(), near.ravel()]).astype(dtype)
    x = x[(x <= 0) & (x >= dtype(_SMALLEST[name]))]
    return np.concatenate([x, -x]) if name == "avx512" else x  # 2^x is also used for logits above the reference


def test_within_two_ulp_on_every_exponent(case: tuple[str, Call]) -> None:
    name, call = case
    x = every_exponent(name)
    exact = _EXACT[name](x.astype(np.longdouble))
    values = call(x)
    ulp = np.spacing(exact.astype(_DTYPES[name])).astype(np.longdouble)
    error = np.abs(values - exact) / ulp
    assert error.max() <= 2, f"{error.max():.2f} ulp at exp({x[error.argmax()]})"


def test_ends_of_the_range(case: tuple[str, Call]) -> None:
    name, call = case
    dtype = _DTYPES[name]
    tiny = np.finfo(dtype).tiny
    at = dtype(_SMALLEST[name])
    zero, last, below, far, nowhere, unknown = call(
        np.array([0.0, at, np.nextafter(at, dtype(-np.inf)), -1e30, -np.inf, np.nan])
    )
    assert zero == 1
    assert tiny <= last < 1.01 * tiny
    assert below == far == nowhere == 0
    assert np.isnan(unknown)
