"""The folders of csrc/ include each other in one direction, as the map in csrc/README.md says."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SIMD, GEMM, PASSES, AVX512 = "cpu/simd", "cpu/gemm", "cpu/passes", "cpu/avx512"
ALLOWED = {
    "shared": {"shared"},
    "torch": {"torch", "shared"},
    "torch/arguments": {"torch/arguments", "torch", "shared"},
    SIMD: {SIMD, "shared"},
    GEMM: {GEMM, SIMD, "shared"},
    PASSES: {PASSES, SIMD, "torch", "shared"},
    AVX512: {AVX512, PASSES, SIMD},
    "cpu/pool": {"cpu/pool", GEMM, SIMD, "torch", "shared"},
    "cpu/ops": {"cpu/ops", "cpu/pool", AVX512, PASSES, GEMM, SIMD, "torch/arguments", "torch", "shared"},
    "cuda/shared": {"cuda/shared", "torch", "shared"},
    "cuda/ops": {"cuda/ops", "cuda/shared", "torch/arguments", "torch", "shared"},
}


def included(path: Path) -> list[str]:
    return re.findall(r'^#include "(.+)"$', path.read_text(), re.MULTILINE)


def sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cuh", ".cpp", ".cu"})


@pytest.mark.parametrize("folder", ALLOWED)
def test_folders_include_in_one_direction(folder: str) -> None:
    paths = [path for path in sources() if path.parent == CSRC / folder]
    assert paths
    for path in paths:
        # The emulator's header replaces CUDA's own.
        names = [name for name in included(path) if name != "emulator.h"]
        folders = {Path(name).parent.as_posix() for name in names}
        assert folders <= ALLOWED[folder], f"{path.relative_to(CSRC)} includes {sorted(folders - ALLOWED[folder])}"


def test_every_folder_has_a_rule() -> None:
    assert {path.parent.relative_to(CSRC).as_posix() for path in sources()} - {"."} == set(ALLOWED)


def test_no_file_includes_itself() -> None:
    """Neither directly nor through other files."""
    reached = {path.relative_to(CSRC).as_posix(): set(included(path)) for path in sources()}
    for _ in reached:
        for name, others in reached.items():
            reached[name] = others.union(*(reached.get(other, set()) for other in others))
    assert [name for name, others in reached.items() if name in others] == []
