"""A wheel that is cross-built for aarch64 works there: emulated, beside torch's own wheel for aarch64.

    pytest -m slow -s tests/packaging/test_aarch64.py

It needs Debian with the packages g++-aarch64-linux-gnu, qemu-user-static, cmake and ninja-build.
"""

import shutil
import sys
from pathlib import Path

import pytest

from tests.native import skip_or_fail
from tests.packaging.debian_python import unpack
from tests.packaging.matrix import build, environment, facts_of, run, try_wheel

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
COMPILER = "aarch64-linux-gnu-g++"
TORCH = "2.10.0"  # the last one whose wheel on PyPI has no CUDA
PROGRAMS = ("apt-get", "dpkg", "qemu-aarch64-static", COMPILER, "cmake", "ninja")

# A part of the tests that takes less than 20 minutes on two cores: every op in float32 and half precision against its
# reference in float64, layouts, memory, threads, tiles, saving and loading; of each test, half of its cases. Left out:
# what needs a compiler.
LEFT_OUT = ("test_vector_code.py", "test_exponential.py", "test_every_op.py", "test_loading.py")
OTHERS = (
    "posterior/test_state.py",
    "acquisition/test_herding.py::test_tiles_and_the_short_list_do_not_matter",
    "lookahead/test_look_ahead.py::test_tiles_do_not_matter",
    "fuzz/test_threads.py::test_threads_give_the_bits_of_one",
)
SELECTED = "not f64 or threads"
PLUGIN = "tests.packaging.some_cases"


def test_a_cross_built_wheel_works(tmp_path: Path) -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        skip_or_fail(f"needs {', '.join(missing)}")
    python = str(unpack("bookworm/arm64/3.11", tmp_path))
    assert facts_of(python) == ("3.11", "aarch64")
    native, _ = build(python, COMPILER, TORCH, tmp_path / "wheels")
    with environment(python, f"torch=={TORCH}", "pytest", "pytest-xdist", "hypothesis", "scikit-learn") as programs:
        row = try_wheel(native, TORCH, programs)
        print(row)
        assert row.kernels == "19 of 19, baseline"
        assert row.digest in run(sys.executable, ROOT / "tests/packaging/smoke.py"), "picks as on this machine"
        # Beside a copy of the tests there is no package but the installed one.
        copy = tmp_path / "copy"
        shutil.copytree(ROOT / "tests", copy / "tests")
        shutil.copytree(ROOT / "csrc", copy / "csrc")
        shutil.copy(ROOT / "pyproject.toml", copy)
        tests = copy / "tests"
        files = [tests / "ops", *(tests / other for other in OTHERS)]
        ignored = [f"--ignore={tests / 'ops' / name}" for name in LEFT_OUT]
        pytest_there = (programs / "python", "-m", "pytest", "-p", PLUGIN, "-q", "-n", "2", "-k", SELECTED)
        print(run(*pytest_there, *files, *ignored, LAPAL_EXT_REQUIRE_NATIVE="1", PYTHONPATH=str(copy))[-3000:])
