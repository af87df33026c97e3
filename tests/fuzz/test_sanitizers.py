"""The tests of the ops under AddressSanitizer and UndefinedBehaviorSanitizer; both report planted faults.

    pytest -m slow tests/fuzz/test_sanitizers.py   # compiles the CPU kernels again: ten minutes on two cores

A copy of the package is built with the sanitizers in the system's temporary folder, where objects are kept for the next
run. Faults are planted in that copy.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.processes import ROOT
from tests.fuzz.tally import count
from tests.native import skip_or_fail

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="sanitizers come into Python through LD_PRELOAD"),
]
CAMPAIGN = "ASan and UBSan over the op tests"
COPY = Path(tempfile.gettempdir()) / f"lapal_ext_sanitized-{os.getuid()}"
ERROR_STATUS = 66
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "LAPAL_EXT_REQUIRE_NATIVE": "1",
    "ASAN_OPTIONS": f"detect_leaks=0:exitcode={ERROR_STATUS}",  # Python leaks by design
    "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={ERROR_STATUS}",
}
KERNEL = "csrc/cpu/ops/predictive.cpp"
ANCHOR = "    predictive_impl(rows);\n"  # where all sizes and pointers are known
PLANTED = {
    "heap-buffer-overflow": "    rows.probabilities[n_rows * n_classes] = scalar_t(0);\n",
    "runtime error: signed integer overflow": (
        "    volatile int64_t many = INT64_MAX;\n    many = many + n_rows;\n    rows.logits.n_rows += many & 0;\n"
    ),
}


def run(command: list[str], environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=COPY,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def update_copy() -> None:
    """Bring the copy up to date; unchanged files keep their time stamps, so that only changed ones are compiled."""
    for folder in ("csrc", "lapal_ext", "tests"):
        for source in (ROOT / folder).rglob("*"):
            target = COPY / source.relative_to(ROOT)
            if source.is_dir() or source.suffix in (".so", ".pyc"):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists() or target.read_bytes() != source.read_bytes():
                shutil.copyfile(source, target)
    shutil.copyfile(ROOT / "pyproject.toml", COPY / "pyproject.toml")
    (COPY / "lapal_ext" / "_build.json").write_text('{"native": true, "reason": ""}\n')


def build() -> None:
    if importlib.util.find_spec("pybind11") is None or shutil.which("cmake") is None or shutil.which("g++") is None:
        skip_or_fail("building with sanitizers needs g++, cmake and pybind11")
    import pybind11

    configure = ["cmake", "-S", "csrc", "-B", "build", "-G", "Ninja", "-DLAPAL_EXT_CUDA=off"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    for command in ([*configure, f"-DCMAKE_CXX_FLAGS={FLAGS}"], ["cmake", "--build", "build"]):
        done = run(command, {"CXX": "g++"})
        assert done.returncode == 0, done.stdout[-2000:]
    for module in (COPY / "build").glob("_C*.so"):
        shutil.copyfile(module, COPY / "lapal_ext" / module.name)


def tests_of(*paths: str) -> subprocess.CompletedProcess[str]:
    libraries = [
        Path(
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
        for name in ("libasan.so", "libubsan.so")
    ]
    preload = {"LD_PRELOAD": " ".join(str(library.resolve()) for library in libraries), "PYTHONPATH": str(COPY)}
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", *paths]
    return run(command, ENVIRONMENT | preload)


@pytest.fixture
def sanitized() -> Iterator[None]:
    update_copy()
    build()
    yield
    update_copy()  # removes a planted fault


@pytest.mark.usefixtures("sanitized")
def test_the_op_tests_are_clean() -> None:
    done = tests_of("tests/ops", "tests/fuzz/test_bad_ops.py")
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.findall(r"(\d+) passed", done.stdout)
    assert passed, done.stdout[-2000:]
    assert not re.search(r"AddressSanitizer|runtime error", done.stdout)
    count(CAMPAIGN, "tests passed with no report", int(passed[-1]))


@pytest.mark.usefixtures("sanitized")
@pytest.mark.parametrize("report", PLANTED)
def test_a_planted_fault_is_reported(report: str) -> None:
    kernel = COPY / KERNEL
    assert ANCHOR in kernel.read_text()
    kernel.write_text(kernel.read_text().replace(ANCHOR, PLANTED[report] + ANCHOR))
    build()
    done = tests_of("tests/ops/test_predictive.py")
    assert done.returncode == ERROR_STATUS, done.stdout[-2000:]
    assert report in done.stdout
    assert "predictive.cpp" in done.stdout
    count(CAMPAIGN, "faults planted and reported")
