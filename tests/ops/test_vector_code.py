"""Kernels are called in place of their references, and are vector code for each instruction set.

``pytest -n 2 -m slow tests/ops/test_vector_code.py`` checks every kernel by itself; the quick run checks the module as
a whole, in which kernels have no names. ``benchmarks/floors.py`` compares times.
"""

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest
import torch

from lapal_ext import ops
from tests.cuda_emulator.build import CSRC, compiler, torch_folder
from tests.draws import Arguments, cast
from tests.native import NATIVE_OPS, require_native, skip_or_fail
from tests.ops.examples import example

# Registers of AVX-512 and of AVX2, by their names in assembly.
REGISTERS = ("zmm", "ymm")
_PACKED = r"\bvfn?m(?:add|sub)\d+p[sd] .*%{register}"  # a multiply-add of a whole register


def calls_reference(name: str, arguments: Arguments, *, directly: bool = False) -> bool:
    op, seen = ops.OPS[name], []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.append(frame.f_code is op.reference.__code__)

    sys.setprofile(watch)
    try:
        (op.reference if directly else op)(**arguments)
    finally:
        sys.setprofile(None)
    return any(seen)


@pytest.mark.parametrize("name", sorted(NATIVE_OPS["cpu"]))
def test_the_kernel_is_called_in_place_of_the_reference(name: str) -> None:
    require_native(name, "cpu")
    arguments = cast(ops.OPS[name], example(name), torch.float32)
    assert not calls_reference(name, arguments)
    assert calls_reference(name, arguments, directly=True)


def assembly(path: str | Path) -> str:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("the kernels have clones for several instruction sets on Linux x86-64 alone")
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("there is no objdump, which reads the code of the kernels")
    command = [objdump, "-d", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def packed(text: str, register: str) -> int:
    """How many multiply-adds of whole registers there are."""
    return len(re.findall(_PACKED.format(register=register), text))


def test_the_module_is_vector_code() -> None:
    module = importlib.util.find_spec("lapal_ext._C")
    if not ops.build_info()["native"] or module is None or module.origin is None:
        skip_or_fail("lapal_ext has no compiled kernels")
    text = assembly(module.origin)
    for register in REGISTERS:
        assert packed(text, register) > 2000


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NATIVE_OPS["cpu"]))
def test_a_kernel_is_vector_code(name: str, tmp_path: Path) -> None:
    require_native(name, "cpu")
    target = tmp_path / f"{name}.o"
    torch_stable = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    includes = [f"-I{CSRC}", "-isystem", str(torch_folder() / "include")]
    flags = ["-std=c++17", "-fPIC", *ops.build_info()["flags"].split(), *torch_stable, *includes]
    subprocess.run([compiler(), *flags, "-c", CSRC / "cpu" / "ops" / f"{name}.cpp", "-o", target], check=True)
    text = assembly(target)
    for register in REGISTERS:
        assert packed(text, register) > 0


def test_code_without_vectors_is_seen(tmp_path: Path) -> None:
    source, target = tmp_path / "loop.cpp", tmp_path / "loop.o"
    source.write_text("void f(float* x, const float* y, int n) { for (int i = 0; i < n; ++i) x[i] += y[i] * x[i]; }\n")
    for flags, some in (["-O3"], True), (["-O3", "-fno-tree-vectorize"], False):
        subprocess.run([compiler(), *flags, "-march=x86-64-v3", "-c", source, "-o", target], check=True)
        assert (packed(assembly(target), "ymm") > 0) is some
