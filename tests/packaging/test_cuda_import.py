"""The CUDA kernels load into a CUDA build of torch and register themselves there; that needs nvcc, and no GPU.

    LAPAL_EXT_TEST_CUDA_TORCH=2.14.1 pytest -m slow -s tests/packaging/test_cuda_import.py

installs that torch, 5.5 GB, into a temporary environment, and prints the build information of the package there.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native import NATIVE_OPS, skip_or_fail

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TORCH = os.environ.get("LAPAL_EXT_TEST_CUDA_TORCH", "")
BUILD_REQUIREMENTS = ["scikit-build-core[setuptools]>=1.1", "setuptools>=77", "pybind11>=2.13", "cmake", "ninja"]
RUN_REQUIREMENTS = ["numpy", "safetensors", "typing_extensions"]

# What runs in the new environment; the last line is JSON.
REPORT = """
import json
import torch
import lapal_ext
ops = lapal_ext.ops.OPS
has = {name: torch._C._dispatch_has_kernel_for_dispatch_key(f"lapal_ext::{name}", "CUDA") for name in sorted(ops)}
probabilities = lapal_ext.ops.predictive(torch.zeros(2, 4), None, 0.4)
assert torch.equal(probabilities, torch.full((2, 4), 0.25))
print(json.dumps({"build": lapal_ext.build_info(), "gpu": torch.cuda.is_available(), "has": has}))
"""


def run(*command: object, **settings: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAPAL_EXT_")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd="/",
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.skipif(not TORCH, reason="LAPAL_EXT_TEST_CUDA_TORCH names no torch to install")
def test_every_kernel_is_registered_in_a_torch_with_cuda(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        skip_or_fail("needs nvcc, and there is none")
    source, environment = tmp_path / "source", tmp_path / "venv"
    leftovers = shutil.ignore_patterns(".*", "build", "*.so", "_build.json", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=leftovers)
    run(sys.executable, "-m", "venv", environment)
    python = environment / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check")
    try:
        run(*pip, f"torch=={TORCH}", *RUN_REQUIREMENTS, *BUILD_REQUIREMENTS)
        on = {"LAPAL_EXT_CUDA": "on", "LAPAL_EXT_CUDA_ARCHITECTURES": "90"}
        run(*pip, "--no-build-isolation", "--no-deps", source, **on)
        report = json.loads(run(python, "-W", "error", "-c", REPORT).splitlines()[-1])
    finally:
        shutil.rmtree(environment)
    print("\n" + json.dumps(report, indent=2))
    assert report["build"]["cuda"]["loaded"], report["build"]["cuda"]["reason"]
    assert report["build"]["native"]
    assert {name for name, found in report["has"].items() if found} == NATIVE_OPS["cuda"]
