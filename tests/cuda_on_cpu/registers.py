"""What ptxas says of every kernel: registers, shared memory, spills. ``python -m tests.cuda_on_cpu.registers``.

Prints the table that ``csrc/cuda/registers.md`` records; ``--architectures 80 86 90 100 120`` compiles for all of them.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
from typing import NamedTuple

from tests.cuda_on_cpu.build import CACHE, CSRC, KERNELS, torch_folder

ARCHITECTURES = ("80", "86", "90", "100", "120")
DEFAULT_ARCHITECTURE = "90"
_FLAGS = [
    "-std=c++17", "-O3", "-Xptxas", "-v", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-DTORCH_STABLE_ONLY",
]  # fmt: skip


class Kernel(NamedTuple):
    """One instantiation of a kernel for one architecture."""

    op: str
    architecture: str
    name: str
    registers: int
    shared_bytes: int  # static; what a launch adds is not known to the compiler
    stack_bytes: int
    spilled_bytes: int


def find_nvcc() -> str | None:
    return shutil.which("nvcc")


def _readable(mangled: list[str]) -> list[str]:
    """``void lapal_ext::f_kernel<4, float>(...)`` -> ``f_kernel<4, float>``."""
    done = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = [re.sub(r"\(.*", "", re.sub(r"\(lapal_ext::(\w+)\)", r"\1", line)) for line in done.stdout.splitlines()]
    return [name.removeprefix("void ").replace("lapal_ext::", "") for name in names]


def _log(op: str, architecture: str, nvcc: str, flags: tuple[str, ...]) -> str:
    """The output of one compilation, kept by what went into it."""
    source = CSRC / "cuda" / f"{op}.cu"
    includes = [f"-I{CSRC}", "-isystem", str(torch_folder() / "include")]
    command = [nvcc, *_FLAGS, *flags, f"-arch=sm_{architecture}", *includes, "-cubin", str(source)]
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted([source, *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]):
        digest.update(path.read_bytes())
    log = CACHE / f"{op}-sm_{architecture}-{digest.hexdigest()[:16]}.log"
    if not log.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        log.write_text(done.stderr)
    return log.read_text()


def parse(op: str, architecture: str, log: str) -> list[Kernel]:
    """Read what ``-Xptxas -v`` prints, a few lines for each kernel."""
    kernels = []
    for part in log.split("Compiling entry function '")[1:]:
        name, rest = part.split("'", 1)
        spills = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", rest)
        registers, shared = re.search(r"Used (\d+) registers", rest), re.search(r"(\d+) bytes smem", rest)
        assert spills, f"ptxas says nothing of the stack of {name}:\n{rest}"
        assert registers, f"ptxas says nothing of the registers of {name}:\n{rest}"
        stack, stores, loads = map(int, spills.groups())
        static = int(shared[1]) if shared else 0
        kernels.append(Kernel(op, architecture, name, int(registers[1]), static, stack, stores + loads))
    names = _readable([kernel.name for kernel in kernels])
    return sorted(kernel._replace(name=name) for kernel, name in zip(kernels, names, strict=True))


def compile_kernels(op: str, architecture: str, nvcc: str, flags: tuple[str, ...] = ()) -> list[Kernel]:
    return parse(op, architecture, _log(op, architecture, nvcc, flags))


def table(kernels: list[Kernel]) -> str:
    lines = [
        "| kernel | architecture | registers | static shared memory | stack | spilled |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{k.name}` | {k.architecture} | {k.registers} | {k.shared_bytes} | {k.stack_bytes} | {k.spilled_bytes} |"
        for k in kernels
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=[DEFAULT_ARCHITECTURE], choices=ARCHITECTURES)
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("there is no nvcc on the PATH")
    kernels = [k for op in KERNELS for a in arguments.architectures for k in compile_kernels(op, a, nvcc)]
    print(table(kernels))


if __name__ == "__main__":
    main()
