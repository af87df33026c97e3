"""No kernel has a race or touches memory that is not its own: ``pytest -m slow tests/cuda_emulator``.

ThreadSanitizer finds races whatever the schedule, AddressSanitizer accesses outside of tensors. Planted bugs show that
both work.
"""

import subprocess
import sys

import pytest

from tests.cuda_emulator import sanitized
from tests.cuda_emulator.build import HERE, KERNELS
from tests.fuzz.processes import HANGS
from tests.native import skip_or_fail

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="sanitizers come into Python through LD_PRELOAD"),
]
PLANTED = [
    ("thread", "read after write"),
    ("thread", "write after read"),
    ("thread", "add"),
    ("thread", "shuffle order"),
    ("address", "global bounds"),
]
REPORTS = {"thread": "data race", "address": "heap-buffer-overflow"}


def run(sanitizer: str, kind: str, name: str) -> tuple[int, str]:
    if kind != "nothing":
        sanitized.compile_first(sanitizer, kind, name)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda_emulator.sanitized", sanitizer, kind, name],
        cwd=HERE.parent.parent,
        env=sanitized.environment(sanitizer),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=10 * HANGS,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module", autouse=True)
def sanitizers_start() -> None:
    for sanitizer in REPORTS:
        status, output = run(sanitizer, "nothing", "")
        if status != 0:
            skip_or_fail(f"the {sanitizer} sanitizer does not start under Python here: {output.strip()[-200:]}")


@pytest.mark.parametrize("sanitizer", REPORTS)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_no_race_and_stay_in_bounds(name: str, sanitizer: str) -> None:
    status, output = run(sanitizer, "kernel", name)
    assert status == 0, output
    assert output == "done\n"


@pytest.mark.parametrize(("sanitizer", "name"), PLANTED)
def test_planted_errors_are_seen(sanitizer: str, name: str) -> None:
    status, output = run(sanitizer, "planted", name)
    assert status == sanitized.ERROR_STATUS, output
    assert REPORTS[sanitizer] in output
    assert "planted_bugs.cpp" in output


@pytest.mark.parametrize(("sanitizer", "name"), PLANTED)
def test_the_same_kernels_without_the_bug_pass(sanitizer: str, name: str) -> None:
    assert run(sanitizer, "healthy", name) == (0, "\ndone\n")
