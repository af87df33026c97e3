"""Decides whether and how the native kernels are built; everything else is in pyproject.toml.

Environment variables:
    LAPAL_EXT_SKIP_BUILD=1      install the pure-torch package, run no CMake.
    LAPAL_EXT_REQUIRE_NATIVE=1  fail where the build would otherwise fall back to pure torch.
    LAPAL_EXT_CUDA=auto|on|off  CUDA kernels; auto: with nvcc and a torch of the same CUDA. `on` also forbids the
                                fallback, since it asks for native code.
    LAPAL_EXT_CUDA_ARCHITECTURES=90  what they are compiled for, as CMake writes it, in a list with semicolons.

Without a compiler, or when compiling fails, the package is installed without kernels and works through its
torch reference. pip hides the output of a successful build, so the reason is kept in `lapal_ext/_build.json`,
which `lapal_ext.build_info()` reports.
"""

import importlib.util
import json
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from scikit_build_core.setuptools.build_cmake import BuildCMake
from setuptools import Command, setup
from setuptools.command.build_py import build_py


def read_choice(variable: str, choices: tuple[str, ...]) -> str:
    """Returns the value of an environment variable, by default the first choice; refuses any other value."""
    value = os.environ.get(variable) or choices[0]
    if value not in choices:
        sys.exit(f"lapal_ext: {variable} must be one of {', '.join(choices)}, got {value!r}")
    return value


SKIP_BUILD = read_choice("LAPAL_EXT_SKIP_BUILD", ("0", "1")) == "1"
CUDA = read_choice("LAPAL_EXT_CUDA", ("auto", "on", "off"))
NATIVE_REQUIRED = read_choice("LAPAL_EXT_REQUIRE_NATIVE", ("0", "1")) == "1" or CUDA == "on"


if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("lapal_ext: this Python is free-threaded, where the package has not been checked: use one with the GIL")


def reason_not_to_build() -> str:
    """Returns why CMake need not even be tried, or an empty string."""
    if SKIP_BUILD:
        return "LAPAL_EXT_SKIP_BUILD=1 was set when lapal_ext was installed"
    if importlib.util.find_spec("torch") is None:
        return "torch was not installed in the environment that built lapal_ext"
    compilers = [shlex.split(os.environ["CXX"])[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return f"no C++ compiler was found when lapal_ext was installed (looked for {', '.join(compilers)})"
    return ""


def announce(reason: str) -> None:
    """Says that there will be no kernels; pip shows it with -v alone, and `lapal-ext doctor` at any time."""
    print(
        f"lapal_ext: installing without native kernels: {reason}. "
        "Everything works, more slowly; `lapal-ext doctor` says how to get them.",
        file=sys.stderr,
    )


def record(command: Command, *, native: bool, reason: str) -> None:
    """Writes `_build.json` beside the modules that this command installs."""
    record_file = package_folder(command) / "_build.json"
    record_file.write_text(json.dumps({"native": native, "reason": reason}) + "\n", encoding="utf-8")


def package_folder(command: Command) -> Path:
    """Returns where the command puts the package: an editable install lives in the source tree."""
    return Path("lapal_ext") if command.editable_mode else Path(command.build_lib, "lapal_ext")


class BuildPython(build_py):
    """Runs before CMake, and leaves a package that is honest about having no kernels yet.

    Both folders survive from build to build, so a kernel module of an earlier build would otherwise be
    installed, and loaded in silence, by a later one that skips CMake or fails in it.
    """

    def run(self) -> None:
        super().run()
        for module in (f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_cuda.so"):
            (package_folder(self) / module).unlink(missing_ok=True)
        if NOT_BUILDING:
            announce(NOT_BUILDING)
        record(self, native=False, reason=NOT_BUILDING or "the native build did not finish")


class BuildNative(BuildCMake):
    """Runs CMake, and turns its failure into a recorded reason unless native code is required."""

    def run(self) -> None:
        try:
            super().run()
        # CMake's absence, a refusal in CMakeLists.txt and a compile error all arrive as different types.
        except (Exception, SystemExit) as error:
            if NATIVE_REQUIRED:
                raise
            reason = (
                f"the native build failed ({error}); it needs a C++17 compiler, cmake and ninja (pip has both), "
                "and `pip install -v` shows its output"
            )
            announce(reason)
            record(self, native=False, reason=reason)
        else:
            record(self, native=True, reason="")


NOT_BUILDING = reason_not_to_build()
if NOT_BUILDING and NATIVE_REQUIRED:
    sys.exit(f"lapal_ext: LAPAL_EXT_REQUIRE_NATIVE=1 or LAPAL_EXT_CUDA=on asks for native code, but {NOT_BUILDING}")

# Without cmake_source_dir no CMake runs, and the wheel is tagged as pure Python.
CMAKE_ARGUMENTS = [
    f"-DLAPAL_EXT_CUDA={CUDA}",
    f"-DLAPAL_EXT_CUDA_ARCHITECTURES={os.environ.get('LAPAL_EXT_CUDA_ARCHITECTURES', '')}",
]
cmake_arguments = {"cmake_source_dir": "csrc", "cmake_args": CMAKE_ARGUMENTS}
setup(
    cmdclass={"build_py": BuildPython, "build_cmake": BuildNative},
    **({} if NOT_BUILDING else cmake_arguments),
)
