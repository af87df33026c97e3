"""ThreadSanitizer sees no race in any kernel, and sees those that are planted: ``pytest -m slow tests/cuda_on_cpu``."""

import subprocess
import sys

import pytest

from tests.cuda_on_cpu import race_check
from tests.cuda_on_cpu.build import HERE, KERNELS
from tests.native import skip_or_fail

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs libtsan in LD_PRELOAD")]


def run(kind: str, name: str) -> tuple[int, str]:
    if kind:
        race_check.compile_first(kind, name)
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda_on_cpu.race_check", kind, name],
        cwd=HERE.parent.parent,
        env=race_check.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module", autouse=True)
def sanitizer() -> None:
    status, output = run("", "")
    if status != 0:
        skip_or_fail(f"ThreadSanitizer does not start under Python here: {output.strip()[-200:]}")


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_have_no_race(name: str) -> None:
    status, output = run("kernel", name)
    assert output.splitlines()[-1] == "done", output
    assert status == 0, output


@pytest.mark.parametrize("name", ["read after write", "write after read", "add"])
def test_planted_races_are_seen(name: str) -> None:
    status, output = run("planted", name)
    assert status == race_check.RACE_STATUS, output
    assert "data race" in output
    assert "planted_bugs.cpp" in output


@pytest.mark.parametrize("name", ["read after write", "add"])
def test_the_same_kernels_without_the_bug_pass(name: str) -> None:
    status, output = run("healthy", name)
    assert (status, output) == (0, "\ndone\n")
