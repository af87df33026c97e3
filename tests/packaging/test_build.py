"""Builds the package as users may build it: from an sdist, without kernels, with a broken compiler.

``pytest -m slow tests/packaging/test_build.py`` compiles all kernels. The quick run uses a compiler that compiles only
the module; of every other source it only checks that all includes exist.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
import torch

from tests.packaging.contents import check_sdist, check_wheel

ROOT = Path(__file__).parents[2]
MODULES = (f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", "_cuda.so")


def without_native_code(reason):
    """Skips the test, or fails it where native code is required."""
    if os.environ.get("LAPAL_EXT_REQUIRE_NATIVE") == "1":
        pytest.fail(f"LAPAL_EXT_REQUIRE_NATIVE=1, but {reason}")
    pytest.skip(reason)


def run(*command, cwd, **settings):
    """Runs a command with only the LAPAL_EXT_* and CMAKE_* variables given; returns its exit status and output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("LAPAL_EXT_", "CMAKE_"))}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=inherited | settings,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, unpacked: every build below starts from it, and fails if a file is missing."""
    folder = tmp_path_factory.mktemp("sdist")
    # Without *.egg-info of an earlier build, whose list of files would hide what MANIFEST.in lacks.
    clean = shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(".git", ".venv", "*.egg-info"))
    build = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(folder)]
    status, output = run(*build, cwd=clean)
    assert status == 0, output
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        # Python before 3.10.12 and 3.11.4 has no filters.
        file.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / archive.name.removesuffix(".tar.gz")


@pytest.fixture
def source(sdist, tmp_path):
    """A new copy of the unpacked sdist, because a build writes into the folder that it builds."""
    return Path(shutil.copytree(sdist, tmp_path / "source"))


def install(source, wheel=None, **settings):
    """Installs the source, or a wheel of it, into `site` beside it; returns pip's exit status and output."""
    pip = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index"]
    return run(*pip, "--target", str(source.parent / "site"), str(wheel or source), cwd=source.parent, **settings)


def run_setup(source, before="", **settings):
    """Runs setup.py alone, which pip would run, for settings that it refuses; returns its exit status and output."""
    code = f"{before}\nimport runpy, sys; sys.argv[:] = ['setup.py', '--version']; runpy.run_path('setup.py')"
    return run(sys.executable, "-c", code, cwd=source, **settings)


def build_wheel(source, **settings):
    """Builds a wheel into `dist` beside the source, and returns it."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(source.parent / "dist")]
    status, output = run(*build, str(source), cwd=source.parent, **settings)
    assert status == 0, output
    (wheel,) = (source.parent / "dist").glob("*.whl")
    return wheel


def installed_build_info(source, before="import torch"):
    """Returns build_info() of the installed package, as a new process reports it after running an op."""
    code = (
        f"{before}\n"
        "import json, torch, lapal_ext\n"
        "covariance = torch.eye(3)[None]\n"
        "updated, _ = lapal_ext.ops.rank_one_update(covariance, torch.ones(1, 3), torch.ones(1))\n"
        "assert torch.allclose(updated, covariance - 0.25 * torch.ones(1, 3, 3))\n"
        "print(json.dumps(lapal_ext.build_info() | {'file': lapal_ext.__file__}))\n"
    )
    site = source.parent / "site"
    status, output = run(sys.executable, "-c", code, cwd=source.parent, PYTHONPATH=str(site))
    assert status == 0, output
    info = json.loads(output.splitlines()[-1])
    assert Path(info["file"]).is_relative_to(site)
    return info, output


def compiler_for_sources(folder, instead):
    """A C++ compiler that passes every check of CMake, but runs ``instead`` for sources of this project."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        without_native_code("there is no C++ compiler")
    script = folder / "changed-c++"
    script.write_text(f'#!/bin/sh\nreal={compiler}\ncase "$*" in {instead} esac\nexec "$real" "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def broken_compiler(tmp_path):
    return compiler_for_sources(tmp_path, '*/csrc/*.cpp*) echo "planted compile error" >&2; exit 1;;')


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF file with nm")
def test_module_imports_only_the_stable_abi():
    spec = importlib.util.find_spec("lapal_ext._C")
    if spec is None:
        without_native_code("lapal_ext has no compiled kernels")
    if shutil.which("nm") is None:
        without_native_code("there is no nm")
    status, output = run("nm", "-DC", "--undefined-only", spec.origin, cwd=ROOT)
    assert status == 0, output
    imported = [line.split(maxsplit=1)[-1] for line in output.splitlines()]
    assert "aoti_torch_abi_version" in imported
    assert [symbol for symbol in imported if "c10::" in symbol or "at::" in symbol] == []
    assert [symbol for symbol in imported if "lapal_ext::" in symbol] == [], "the compiler left out what it calls"


needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc, and there is none")


def test_sdist_builds_a_wheel_of_a_module_without_kernels(source, tmp_path):
    """Like a build with kernels, without the minutes for them: includes are found, and CMake's module is packed."""
    nothing = tmp_path / "nothing.cpp"
    nothing.touch()
    # The arguments of the compiler end with `-o OBJECT -c SOURCE`.
    instead = f"""\
*/csrc/module.cpp*) ;;
*/csrc/*.cpp*)
  "$real" "$@" -E || exit 1
  while [ "$1" != -o ]; do shift; done
  exec "$real" -fPIC -c {nothing} -o "$2";;
"""
    compiler = compiler_for_sources(tmp_path, instead)
    wheel = build_wheel(source, LAPAL_EXT_REQUIRE_NATIVE="1", LAPAL_EXT_CUDA="off", CXX=compiler)
    check_wheel(wheel, native=True)
    status, output = install(source, wheel)
    assert status == 0, output
    info, _ = installed_build_info(source)
    assert info["native"] is True
    assert info["reason"] == ""
    assert info["target_version"] == "2.10"


@pytest.fixture(scope="module")
def native(sdist, tmp_path_factory):
    """A copy of the sdist with the package installed beside it: with kernels, for CUDA as well where there is nvcc."""
    if shutil.which("c++") is None:
        without_native_code("there is no C++ compiler")
    source = Path(shutil.copytree(sdist, tmp_path_factory.mktemp("native") / "source"))
    cuda = "off" if shutil.which("nvcc") is None else "on"
    wheel = build_wheel(source, LAPAL_EXT_REQUIRE_NATIVE="1", LAPAL_EXT_CUDA=cuda, LAPAL_EXT_CUDA_ARCHITECTURES="90")
    check_wheel(wheel, native=True)
    status, output = install(source, wheel)
    assert status == 0, output
    return source


def test_sdist_holds_the_sources_and_nothing_else(sdist):
    check_sdist(sdist.parent / f"{sdist.name}.tar.gz")


@pytest.mark.slow
def test_sdist_builds_a_native_wheel(native):
    info, _ = installed_build_info(native)
    assert info["native"] is True
    assert info["reason"] == ""
    assert info["target_version"] == "2.10"
    assert info["instruction_set"] in {"avx512", "avx2", "baseline"}


@needs_nvcc
@pytest.mark.slow
def test_a_wheel_with_cuda_works_where_torch_has_another_cuda_or_none(native):
    assert (native.parent / "site" / "lapal_ext" / "_cuda.so").is_file()
    info, _ = installed_build_info(native, "import torch; torch.version.cuda = None")
    assert info["native"] is True
    assert info["cuda"]["architectures"] == "90"
    assert info["cuda"]["loaded"] is False
    assert info["cuda"]["reason"] == f"torch {info['torch']} has no CUDA"

    info, output = installed_build_info(native, "import torch; torch.version.cuda = '1.2'")
    assert info["cuda"]["loaded"] is False
    assert f"built with CUDA {info['cuda']['toolkit']}, and torch {info['torch']} runs CUDA 1.2" in output
    assert f"UserWarning: {info['cuda']['reason']}" in output

    # A torch that says it has the right CUDA, and lacks its library.
    if torch.version.cuda is None:
        before = f"import torch; torch.version.cuda = '{info['cuda']['toolkit']}'"
        info, output = installed_build_info(native, before)
        assert info["cuda"]["loaded"] is False
        assert "the CUDA kernels do not load: " in info["cuda"]["reason"]


def test_skipping_the_build_makes_a_pure_wheel_that_says_so(source):
    wheel = build_wheel(source, LAPAL_EXT_SKIP_BUILD="1")
    check_wheel(wheel, native=False)
    status, output = install(source, wheel)
    assert status == 0, output
    info, _ = installed_build_info(source)
    assert info["native"] is False
    assert "LAPAL_EXT_SKIP_BUILD" in info["reason"]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"CXX": "/nowhere/c++"}, id="CXX", marks=pytest.mark.slow),
        pytest.param({"PATH": "/nowhere", "CXX": ""}, id="PATH"),
    ],
)
def test_no_compiler_installs_pure_torch_and_says_so(source, settings):
    status, output = install(source, **settings)
    assert status == 0, output
    assert "lapal_ext: installing without native kernels: no C++ compiler was found" in output
    info, _ = installed_build_info(source)
    assert info["native"] is False
    assert "no C++ compiler" in info["reason"]


def test_compile_error_installs_pure_torch_and_says_so(source, broken_compiler):
    status, output = install(source, CXX=broken_compiler)
    assert status == 0, output
    assert "planted compile error" in output
    assert "lapal_ext: installing without native kernels: the native build failed" in output
    info, _ = installed_build_info(source)
    assert info["native"] is False
    assert "the native build failed" in info["reason"]


def test_compile_error_fails_where_native_code_is_required(source, broken_compiler):
    status, output = install(source, CXX=broken_compiler, LAPAL_EXT_REQUIRE_NATIVE="1")
    assert status != 0
    assert "planted compile error" in output


def test_cuda_on_fails_rather_than_falling_back(source):
    status, output = install(source, LAPAL_EXT_CUDA="on", CUDACXX="/nowhere/nvcc")
    assert status != 0
    assert "no working nvcc was found" in output


@pytest.mark.parametrize(
    "settings",
    [
        {"LAPAL_EXT_SKIP_BUILD": "yes"},
        {"LAPAL_EXT_REQUIRE_NATIVE": "true"},
        {"LAPAL_EXT_CUDA": "ON"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_unknown_value_of_a_setting_is_refused(sdist, settings):
    status, output = run_setup(sdist, **settings)
    assert status == 1
    ((name, value),) = settings.items()
    assert f"lapal_ext: {name} must be one of" in output
    assert f"got '{value}'" in output


def test_a_free_threaded_python_is_refused(sdist):
    """The configuration of Python is changed: such a Python is rarely at hand."""
    status, output = run_setup(sdist, before="import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1")
    assert status == 1
    assert "lapal_ext: this Python is free-threaded" in output


def test_skipping_contradicts_requiring(sdist):
    status, output = run_setup(sdist, LAPAL_EXT_SKIP_BUILD="1", LAPAL_EXT_REQUIRE_NATIVE="1")
    assert status == 1
    assert "asks for native code, but LAPAL_EXT_SKIP_BUILD=1" in output


@pytest.mark.parametrize("hook", ["build_editable", "build_wheel"])
def test_a_later_build_without_kernels_removes_those_of_an_earlier_one(source, hook):
    build_lib = source / "build" / "lib" / "lapal_ext"
    package = {"build_editable": source / "lapal_ext", "build_wheel": build_lib}[hook]
    package.mkdir(parents=True, exist_ok=True)
    for module in MODULES:
        (package / module).write_bytes(b"stale")
    code = f"from scikit_build_core.setuptools import build_meta; build_meta.{hook}('..')"
    status, output = run(sys.executable, "-c", code, cwd=source, LAPAL_EXT_SKIP_BUILD="1")
    assert status == 0, output
    assert [module for module in MODULES if (package / module).exists()] == []
    assert json.loads((package / "_build.json").read_text())["native"] is False
