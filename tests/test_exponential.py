"""The exponential of csrc/likelihood.h, which every kernel with a softmax takes: within 2 ulp on every exponent."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

_HERE = Path(__file__).parent
_CSRC = _HERE.parent / "csrc"
_FLAGS = ["-O3", "-std=c++17", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]
_MACHINES = {
    "baseline": [],
    "this processor": ["-march=native"],
}  # without and, on most machines, with fused multiply-add
_DTYPES = {"float": np.float32, "double": np.float64}
_SMALLEST = {"float": -87.33, "double": -708.39}
_PER_EXPONENT = 4096


@pytest.fixture(scope="module", params=_MACHINES)
def code(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("c++")
    if compiler is None or not _CSRC.is_dir():
        reason = "no C++ compiler, or no csrc/ to compile"
        if os.environ.get("LAPAL_EXT_REQUIRE_NATIVE") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    library = tmp_path_factory.mktemp("exponential") / "exponential.so"
    command = [compiler, *_FLAGS, *_MACHINES[request.param], f"-I{_CSRC}", str(_HERE / "exponential.cpp")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def call(code: ctypes.CDLL, name: str, x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x, dtype=_DTYPES[name])
    out = np.empty_like(x)
    getattr(code, f"exponentials_{name}")(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data), len(x))
    return out


def every_exponent(name: str) -> np.ndarray:
    """Arguments of every binary exponent down to where exp(x) rounds to one, and near every power of two of the result."""
    dtype = _DTYPES[name]
    generator = np.random.default_rng(0)
    exponents = np.arange(-np.finfo(dtype).nmant - 4, 10)
    mantissas = 1 + generator.random((len(exponents), _PER_EXPONENT))
    powers = np.arange(0, -_SMALLEST[name] / np.log(2), 0.5)  # and the halves, where n changes
    near = (powers[:, None] + 1e-3 * generator.standard_normal((len(powers), 64))) * np.log(2)
    x = -np.concatenate([(np.ldexp(mantissas, exponents[:, None])).ravel(), near.ravel()]).astype(dtype)
    return x[(x <= 0) & (x >= dtype(_SMALLEST[name]))]


@pytest.mark.parametrize("name", _DTYPES)
def test_within_two_ulp_on_every_exponent(code: ctypes.CDLL, name: str) -> None:
    x = every_exponent(name)
    exact = np.exp(x.astype(np.longdouble))
    values = call(code, name, x)
    ulp = np.spacing(exact.astype(_DTYPES[name])).astype(np.longdouble)
    error = np.abs(values - exact) / ulp
    assert error.max() <= 2, f"{error.max():.2f} ulp at exp({x[error.argmax()]})"


@pytest.mark.parametrize("name", _DTYPES)
def test_ends_of_the_range(code: ctypes.CDLL, name: str) -> None:
    dtype = _DTYPES[name]
    tiny = np.finfo(dtype).tiny
    at = dtype(_SMALLEST[name])
    zero, last, below, far, nowhere, unknown = call(
        code, name, np.array([0.0, at, np.nextafter(at, dtype(-np.inf)), -1e30, -np.inf, np.nan])
    )
    assert zero == 1
    assert tiny <= last < 1.01 * tiny
    assert below == far == nowhere == 0
    assert np.isnan(unknown)
