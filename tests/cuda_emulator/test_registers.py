"""Every CUDA source compiles, and no kernel spills registers.

``pytest -n 2 -m "slow or not slow" tests/cuda_emulator/test_registers.py`` compiles all of them for one architecture,
and with ``LAPAL_EXT_TEST_ARCHITECTURES=all`` for every one. The quick run compiles one of them.
"""

import os
import re
from pathlib import Path

import pytest

from tests.cuda_emulator import registers
from tests.cuda_emulator.build import CSRC


def architectures() -> tuple[str, ...]:
    wanted = os.environ.get("LAPAL_EXT_TEST_ARCHITECTURES", registers.DEFAULT_ARCHITECTURE)
    return registers.ARCHITECTURES if wanted == "all" else tuple(wanted.split(","))


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = registers.find_nvcc()
    if found is None:
        pytest.skip("needs nvcc, and there is none")
    return found


# It compiles fastest.
QUICK = "predictive_variance"


@pytest.mark.parametrize("architecture", architectures())
@pytest.mark.parametrize(
    "source",
    [pytest.param(s, id=s.stem, marks=[] if s.stem == QUICK else pytest.mark.slow) for s in registers.SOURCES],
)
def test_compiles_without_spills(source: Path, architecture: str, nvcc: str) -> None:
    kernels = registers.compile_kernels(source, architecture, nvcc)
    assert kernels
    spilling = [kernel for kernel in kernels if kernel.spilled_bytes or kernel.stack_bytes]
    assert not spilling, registers.table(spilling)


def test_a_spill_is_seen(nvcc: str, tmp_path: Path) -> None:
    """200 values that live at once, in a block so large that a thread has 32 registers."""
    source = tmp_path / "spill.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spill_kernel(float* x) {\n"
        "  float values[200];\n"
        "  for (int i = 0; i < 200; ++i) values[i] = x[i * 1024 + threadIdx.x];\n"
        "  __syncthreads();\n"
        "  for (int i = 0; i < 200; ++i) x[(199 - i) * 1024 + threadIdx.x] = values[i];\n"
        "}\n"
    )
    (kernel,) = registers.compile_kernels(source, registers.DEFAULT_ARCHITECTURE, nvcc)
    assert kernel.name == "spill_kernel"
    assert kernel.registers == 32
    assert kernel.spilled_bytes > 0


def listed_kernels() -> set[str]:
    """The kernels of the recorded table, with their template arguments."""
    recorded = (CSRC / "cuda" / "registers.md").read_text()
    return {line.split("`")[1] for line in recorded.splitlines() if line.startswith("| `")}


def test_the_table_names_every_kernel_of_the_sources() -> None:
    """Names without template arguments, which only the compiler knows."""
    sources = "".join(path.read_text() for path in (CSRC / "cuda").rglob("*.cuh"))
    written = set(re.findall(r"__global__[^;{]*?\b(\w+_kernel)\(", sources))
    assert written
    assert {name.partition("<")[0] for name in listed_kernels()} == written


@pytest.mark.slow
def test_the_table_names_every_kernel(nvcc: str) -> None:
    """The figures are not compared, because they depend on the version of nvcc."""
    recorded = (CSRC / "cuda" / "registers.md").read_text()
    assert f"registers on {' / '.join(registers.ARCHITECTURES)} |" in recorded
    wanted = {
        k.name for s in registers.SOURCES for k in registers.compile_kernels(s, registers.DEFAULT_ARCHITECTURE, nvcc)
    }
    assert listed_kernels() == wanted, "python -m tests.cuda_emulator.registers > csrc/cuda/registers.md"


def test_kernels_include_only_what_both_compilers_have() -> None:
    for path in sorted((CSRC / "cuda").rglob("*.cuh")):
        if path.name.endswith("launch.cuh"):
            continue
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                included = line.split()[1].strip('"<>')
                of_kernels = included.startswith("cuda/") and included.endswith(".cuh")
                allowed = of_kernels or included == "cuda/shared/portability.h" or included.startswith("shared/")
                assert allowed, f"{path.name} includes {included}"
                assert not included.endswith("launch.cuh"), f"{path.name} includes a launcher"
