"""The smoke test of wheels passes here too, and fails if the package is expected to be of the other kind."""

import subprocess
import sys
from pathlib import Path

from lapal_ext import ops

SMOKE = Path(__file__).with_name("smoke.py")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SMOKE, *arguments], capture_output=True, text=True, check=False)


def test_the_package_under_test_passes() -> None:
    native = ops.build_info()["native"]
    done = run() if native else run("--pure")
    assert done.returncode == 0, done.stderr
    done = run("--pure") if native else run()
    assert done.returncode == 1
    assert "expected reference ops" in done.stderr if native else "expected native ops" in done.stderr
