"""What an sdist and a wheel of this repository must hold, and nothing else: asserted on the files themselves."""

import json
import tarfile
import zipfile
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("*.py", "*.cpp", "*.h", "*.cu", "*.cuh", "*.cmake", "*.md", "*/CMakeLists.txt", "*/py.typed")
TOP_LEVEL = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
OF_SETUPTOOLS = ("PKG-INFO", "setup.cfg", "lapal_ext.egg-info/*")
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}


def matching(names: Iterable[str], patterns: Iterable[str]) -> set[str]:
    return {name for name in names for pattern in patterns if fnmatch(name, pattern)}


def sources(*folders: str) -> set[str]:
    files = (file for folder in folders for file in (ROOT / folder).rglob("*") if file.is_file())
    return matching((file.relative_to(ROOT).as_posix() for file in files), SOURCES)


def check_sdist(archive: Path) -> None:
    """All sources, tests and benchmarks, README's pictures, and none of what building and testing leave behind."""
    with tarfile.open(archive) as file:
        names = {member.name.partition("/")[2] for member in file if member.isfile()}
    pictures = {picture.relative_to(ROOT).as_posix() for picture in (ROOT / ".github").glob("*.png")}
    expected = sources("lapal_ext", "csrc", "tests", "benchmarks") | TOP_LEVEL | pictures
    found = names - matching(names, OF_SETUPTOOLS)
    assert found == expected, f"missing {sorted(expected - found)}, not expected {sorted(found - expected)}"


def check_wheel(wheel: Path, *, native: bool) -> None:
    """The package's modules, py.typed and LICENSE, with kernels or without: no tests, no C++ sources."""
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.endswith("/")}
        record = json.loads(file.read("lapal_ext/_build.json"))
    information = {name for name in names if ".dist-info/" in name}
    assert {name.partition("/")[2] for name in information - matching(names, ["*.dist-info/sboms/*"])} == METADATA
    kernels = matching(names, ["lapal_ext/_C.*.so", "lapal_ext/_cuda.so"])
    expected = sources("lapal_ext") | {"lapal_ext/_build.json"}
    found = names - information - kernels
    assert found == expected, f"missing {sorted(expected - found)}, not expected {sorted(found - expected)}"
    assert record["native"] is native, record["reason"]
    assert bool(matching(kernels, ["*/_C.*"])) is native, f"kernels in the wheel: {sorted(kernels)}"
    assert wheel.name.endswith("-py3-none-any.whl") is not native, wheel.name
