"""The headers of a release of torch, and whether the native sources compile against them.

The headers are those of the wheel for macOS: it is the smallest, 80 to 130 MB, and the headers of the stable ABI are
the same in the wheels of all systems.
"""

import shlex
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pybind11

CSRC = Path(__file__).parents[2] / "csrc"
EMULATOR = Path(__file__).parents[1] / "cuda_emulator"
RELEASES = ("2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.1")
_PLATFORMS = [f"--platform=macosx_{version}_0_arm64" for version in (14, 11)]
# Those of csrc/CMakeLists.txt that decide what compiles.
_FLAGS = [
    "-std=c++17", "-fPIC", "-fvisibility=hidden", "-O3", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror=switch",
    "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
    '-DLAPAL_EXT_BUILD_TYPE=""', '-DLAPAL_EXT_FLAGS=""', '-DLAPAL_EXT_CUDA_TOOLKIT=""',
    '-DLAPAL_EXT_CUDA_ARCHITECTURES=""', '-DLAPAL_EXT_CUDA_REASON=""',
]  # fmt: skip


def headers_of(release: str, folder: Path) -> Path:
    """Downloads the wheel of a release into the folder, and returns its folder of headers."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *_PLATFORMS]
    command += ["--python-version=3.11", f"--dest={folder}", f"torch=={release}"]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if name.startswith("torch/include/torch/")]
        file.extractall(folder, names)
    wheel.unlink()
    return folder / "torch" / "include"


def sources() -> list[Path]:
    """Every source, those of CUDA too: without nvcc they compile for the emulator."""
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".cu"})


def complaints(compiler: str, source: Path, headers: Path) -> str:
    """Compiles a source without making code; returns what the compiler says, and nothing if all is well."""
    includes = [f"-I{CSRC}", f"-I{EMULATOR}", f"-isystem{headers}"]
    includes += [f"-isystem{folder}" for folder in (pybind11.get_include(), sysconfig.get_path("include"))]
    command = [*shlex.split(compiler), *_FLAGS, *includes, "-fsyntax-only", "-x", "c++", str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.stdout or ("" if done.returncode == 0 else f"exit status {done.returncode}")
