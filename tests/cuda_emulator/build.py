"""Compiles kernels for the emulator, and loads them: one library per op, each with its own emulator.

``emulated("predictive")`` is ``csrc/cuda/ops/predictive.cu``, launcher and kernel, as an op on CPU tensors. The schema
is that of the real op; without nvcc, ``csrc/cuda/shared/launch.cuh`` has no stream and no device. Compiled objects are
cached in the system's temporary folder under a hash of their inputs, so only what changed is compiled again.
"""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from lapal_ext.ops import OPS
from tests.native import skip_or_fail

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
NAMESPACE = "lapal_ext_emulated"
KERNELS = sorted(path.stem for path in (CSRC / "cuda" / "ops").glob("*.cu"))
CACHE = Path(tempfile.gettempdir()) / f"lapal_ext_cuda_emulator-{os.getuid()}"

_FLAGS = [
    "-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra", "-Werror=switch",
    "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY",
]  # fmt: skip


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def compiler() -> str:
    """The C++ compiler; without one the test is skipped, or fails where native code is required."""
    found = next(filter(None, map(shutil.which, filter(None, [os.environ.get("CXX"), "g++", "c++"]))), None)
    if found is None:
        skip_or_fail("the emulator of CUDA needs a C++ compiler, and there is none")
    return found


@functools.cache
def _headers() -> bytes:
    """A hash of everything that a source may include and that may change between two runs."""
    paths = [*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh"), *HERE.glob("*.h")]
    digest = hashlib.sha256(torch.__version__.encode())
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.digest()


def run_once(command: list[str], result: Path) -> None:
    """Run a compiler unless ``result`` exists; ``result`` appears complete or not at all."""
    if result.exists():
        return
    result.parent.mkdir(parents=True, exist_ok=True)
    unfinished = result.with_suffix(f".{os.getpid()}")
    done = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    unfinished.replace(result)


def _compile(source: Path, sanitizer: str) -> Path:
    includes = [f"-I{CSRC}", f"-I{HERE}", "-isystem", str(torch_folder() / "include")]
    command = [compiler(), *_FLAGS, *includes, "-x", "c++", "-c", str(source)]
    # The emulator is not instrumented, because its own accesses belong to no kernel; it only tells ThreadSanitizer
    # about fibers and barriers.
    if sanitizer and source.name != "emulator.cpp":
        command += [f"-fsanitize={sanitizer}"]
    elif sanitizer == "thread":
        command += ["-DEMULATOR_TSAN"]
    key = hashlib.sha256(repr(command).encode() + _headers() + source.read_bytes()).hexdigest()[:16]
    result = CACHE / f"{source.stem}-{key}.o"
    run_once(command, result)
    return result


def library(source: Path, sanitizer: str = "") -> Path:
    """Compile one source with the emulator into a shared object, for "thread" or "address" sanitizer or neither."""
    objects = [_compile(source, sanitizer), _compile(HERE / "emulator.cpp", sanitizer)]
    result = CACHE / ("-".join(path.stem for path in objects) + ".so")
    flags = [f"-fsanitize={sanitizer}"] if sanitizer else []
    link = [compiler(), "-shared", "-Wl,-Bsymbolic", *map(str, objects), *flags]
    run_once([*link, "-Wl,--as-needed", str(torch_folder() / "lib" / "libtorch_cpu.so")], result)
    return result


def _no_gradient(*_: object) -> None:
    raise RuntimeError("the op has no autograd formula")


class EmulatedOp:
    """A CUDA kernel and its launcher on CPU tensors, under the schedule that ``seed`` chooses."""

    def __init__(self, name: str, sanitizer: str = "") -> None:
        path = library(CSRC / "cuda" / "ops" / f"{name}.cu", sanitizer)
        schema = str(getattr(torch.ops.lapal_ext, name).default._schema)
        self._definition = torch.library.Library(NAMESPACE, "FRAGMENT")
        self._definition.define(schema.split("::", 1)[1])
        torch.ops.load_library(path)
        self._library = ctypes.CDLL(str(path))
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        qualified = f"{NAMESPACE}::{name}"
        torch.library.register_fake(qualified, OPS[name]._fake, lib=self._definition)
        if not self.overload._schema.is_mutable:
            torch.library.register_autograd(qualified, _no_gradient, lib=self._definition)
        self.seed(0)

    def seed(self, number: int) -> None:
        self._library.emulator_set_seed(ctypes.c_uint64(number))

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.overload(*args, **kwargs)


@functools.cache
def emulated(name: str, sanitizer: str = "") -> EmulatedOp:
    """The emulated op of that name; the same one on every call, since the dispatcher keeps it for good."""
    return EmulatedOp(name, sanitizer)
