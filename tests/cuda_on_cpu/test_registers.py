"""Every CUDA source compiles, and no kernel spills registers. ``LAPAL_EXT_TEST_ARCHITECTURES=all`` takes them all."""

import os

import pytest

from tests.cuda_on_cpu import registers
from tests.cuda_on_cpu.build import CSRC, KERNELS


def architectures() -> tuple[str, ...]:
    wanted = os.environ.get("LAPAL_EXT_TEST_ARCHITECTURES", registers.DEFAULT_ARCHITECTURE)
    return registers.ARCHITECTURES if wanted == "all" else tuple(wanted.split(","))


@pytest.fixture(scope="module")
def nvcc() -> str:
    found = registers.find_nvcc()
    if found is None:
        pytest.skip("CUDA sources are compiled by nvcc, and there is none")
    return found


@pytest.mark.parametrize("architecture", architectures())
@pytest.mark.parametrize("op", KERNELS)
def test_compiles_without_spills(op: str, architecture: str, nvcc: str) -> None:
    kernels = registers.compile_kernels(op, architecture, nvcc)
    assert kernels
    spilling = [kernel for kernel in kernels if kernel.spilled_bytes or kernel.stack_bytes]
    assert not spilling, registers.table(spilling)


def test_a_spill_is_seen(nvcc: str) -> None:
    kernels = registers.compile_kernels("predictive", "90", nvcc, ("-maxrregcount=24",))
    assert any(kernel.spilled_bytes for kernel in kernels)


def test_the_table_is_up_to_date(nvcc: str) -> None:
    """Names and architectures only: the figures depend on the version of nvcc, which the table names."""
    recorded = (CSRC / "cuda" / "registers.md").read_text()
    for op in KERNELS:
        for kernel in registers.compile_kernels(op, registers.DEFAULT_ARCHITECTURE, nvcc):
            for architecture in registers.ARCHITECTURES:
                assert f"| `{kernel.name}` | {architecture} |" in recorded, "python -m tests.cuda_on_cpu.registers"


def test_kernels_include_only_what_both_compilers_have() -> None:
    allowed = {"cuda/portability.h", "likelihood.h", "storage.h", "returning_class.h"}
    for path in sorted((CSRC / "cuda").glob("*.cuh")):
        if path.name in {"launch.cuh", "row_launch.cuh"}:
            continue
        for line in path.read_text().splitlines():
            if line.startswith("#include"):
                included = line.split()[1].strip('"<>')
                shared = included in allowed or (included.startswith("cuda/") and included.endswith(".cuh"))
                assert shared, f"{path.name} includes {included}"
                assert included not in {"cuda/launch.cuh", "cuda/row_launch.cuh"}, f"{path.name} includes a launcher"
