"""What ptxas reports for every kernel: registers, shared memory, spills.

``python -m tests.cuda_emulator.registers > csrc/cuda/registers.md`` records it for all architectures.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.cuda_emulator.build import CACHE, CSRC, KERNELS, torch_folder

SOURCES = [CSRC / "cuda" / "ops" / f"{name}.cu" for name in KERNELS]
ARCHITECTURES = ("80", "86", "90", "100", "120")
DEFAULT_ARCHITECTURE = "90"
_FLAGS = [
    "-std=c++17", "-O3", "-Xptxas", "-v", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-DTORCH_STABLE_ONLY",
]  # fmt: skip


class Kernel(NamedTuple):
    """One instantiation of a kernel for one architecture."""

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


def _log(source: Path, architecture: str, nvcc: str) -> str:
    """The output of one compilation, cached under a hash of its inputs."""
    includes = [f"-I{CSRC}", "-isystem", str(torch_folder() / "include")]
    command = [nvcc, *_FLAGS, f"-arch=sm_{architecture}", *includes, "-cubin", str(source)]
    digest = hashlib.sha256(repr(command).encode())
    for path in sorted([source, *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]):
        digest.update(path.read_bytes())
    log = CACHE / f"{source.stem}-sm_{architecture}-{digest.hexdigest()[:16]}.log"
    if not log.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        log.write_text(done.stderr)
    return log.read_text()


def parse(architecture: str, log: str) -> list[Kernel]:
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
        kernels.append(Kernel(architecture, name, int(registers[1]), static, stack, stores + loads))
    names = _readable([kernel.name for kernel in kernels])
    return sorted(kernel._replace(name=name) for kernel, name in zip(kernels, names, strict=True))


def compile_kernels(source: Path, architecture: str, nvcc: str) -> list[Kernel]:
    return parse(architecture, _log(source, architecture, nvcc))


def table(kernels: list[Kernel]) -> str:
    """One line per kernel; a column for the registers on each architecture, and the worst case of the rest."""
    architectures = sorted({kernel.architecture for kernel in kernels}, key=int)
    by_name: dict[str, dict[str, Kernel]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, {})[kernel.architecture] = kernel
    lines = [
        f"| kernel | registers on {' / '.join(architectures)} | static shared memory | stack | spilled |",
        "|---|---|---|---|---|",
    ]
    for name, found in by_name.items():
        registers = " / ".join(str(found[a].registers) if a in found else "" for a in architectures)
        worst = [max(getattr(k, field) for k in found.values()) for field in Kernel._fields[3:]]
        lines.append(f"| `{name}` | {registers} | {' | '.join(map(str, worst))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("there is no nvcc on the PATH")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V([\d.]+)", version)
    assert release, version
    kernels = [k for s in SOURCES for a in arguments.architectures for k in compile_kernels(s, a, nvcc)]
    print(f"# Registers and memory of the CUDA kernels\n\nFrom ptxas of nvcc {release[1]}, {' '.join(_FLAGS[:2])}.")
    print("Bytes of shared memory are those that the compiler knows of; stack and spilled bytes must be zero.")
    print("`python -m tests.cuda_emulator.registers > csrc/cuda/registers.md` makes this table.\n")
    print(table(kernels))


if __name__ == "__main__":
    main()
