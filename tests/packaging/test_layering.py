"""Imports point one way: a module may import what stands before it in ``ORDER``, and nothing after."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lapal_ext
from tests.fuzz.processes import HANGS

PACKAGE = Path(lapal_ext.__file__).parent
ROOT = "__init__"  # what ``import lapal_ext`` loads

# The folders and single files of the package from left to right. A new one gets its place here first.
ORDER = [
    "errors", "atomic_file", "validation", "likelihood", "ops", "posterior", "pool", "baselines",
    "acquisition", "selection", "lookahead",
    ROOT,
    "features", "interop", "study", "cli", "__main__",
]  # fmt: skip
HEAVY = ("sklearn", "scipy", "matplotlib", "rich", "torchmetrics", "pandas", "skactiveml", "laplace", "torchvision")


def room_of(path: Path) -> str:
    """``ops/_define.py`` -> ``ops``, ``posterior.py`` -> ``posterior``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def rooms_imported(source: str, package: str) -> Iterator[tuple[str, int]]:
    """Rooms imported anywhere in a module of ``package``, even in functions or under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [base])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "lapal_ext":
                # ``from lapal_ext import x`` is a module where there is one, else something of the root.
                yield (rest[0] if rest and rest[0] in ORDER else ROOT), node.lineno


def faults(room: str, source: str, package: str) -> list[str]:
    place = ORDER.index(room)
    return [
        f"line {line}: {room} imports {other}, which stands right of it"
        for other, line in rooms_imported(source, package)
        if other != room and ORDER.index(other) > place
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    room = room_of(path)
    assert room in ORDER, (
        f"lapal_ext/{room} has no place in ORDER (tests/packaging/test_layering.py): say what it may import"
    )
    package = ".".join(["lapal_ext", *path.relative_to(PACKAGE).parent.parts])
    found = faults(room, path.read_text(), package)
    assert not found, f"{path}: " + "; ".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import lapal_ext.selection.select_batch",
        "import lapal_ext.selection.select_batch as s",
        "from lapal_ext import selection",
        "from lapal_ext.selection.select_batch import select_batch",
        "from lapal_ext import select_batch",
        "import lapal_ext",
        "from .selection import select_batch",
        "from . import selection",
        "def f():\n    from lapal_ext.study.data import load",
        "if TYPE_CHECKING:\n    from lapal_ext.cli import demo",
    ],
)
def test_a_wrong_import_is_found(line: str) -> None:
    assert len(faults("posterior", line, "lapal_ext")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "from lapal_ext import likelihood, ops",
        "from lapal_ext.ops.declare import define",
        "from .errors import NotPSDError",
        "import torch, selection",
        "from lapal_ext.posterior.updating import absorb",
    ],
)
def test_a_right_import_passes(line: str) -> None:
    assert faults("posterior", line, "lapal_ext") == []


def test_relative_imports_inside_a_room() -> None:
    assert faults("ops", "from .declare import define\nfrom . import loading", "lapal_ext.ops") == []
    assert len(faults("ops", "from ..posterior import LastLayerLaplace", "lapal_ext.ops")) == 1


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    environment = {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=HANGS
    )
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    """Nothing right of the root, nothing that only figures and studies need, and not the compiler (1.3 s)."""
    fresh = modules_after("import lapal_ext") - modules_after("import torch")
    right = ORDER[ORDER.index(ROOT) + 1 :]
    unwanted = {f"lapal_ext.{room}" for room in right} | set(HEAVY) | {"torch._dynamo", "torch._inductor"}
    assert not {name for name in fresh for heavy in unwanted if name == heavy or name.startswith(f"{heavy}.")}


def test_the_order_names_each_room_once() -> None:
    assert len(set(ORDER)) == len(ORDER)
