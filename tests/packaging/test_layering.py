"""Imports point one way: a folder may import what comes before it in ``ORDER``, and no modules import each other."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lapal_ext
from tests.fuzz.processes import HANGS

PACKAGE = Path(lapal_ext.__file__).parent
ROOT = "__init__"  # what ``import lapal_ext`` loads

# The folders and single files of the package: each may import those to its left. A new one must be added here first.
ORDER = [
    "interrupts", "errors", "entries", "atomic_file", "tiles", "validation", "line_search", "likelihood", "losses",
    "utilities", "rules", "ops", "posterior", "baselines", "pool", "acquisition", "selection", "lookahead",
    ROOT,
    "features", "interop", "study", "cli", "__main__",
]  # fmt: skip
HEAVY = ("sklearn", "scipy", "matplotlib", "rich", "torchmetrics", "pandas", "skactiveml", "laplace", "torchvision")


def folder_of(path: Path) -> str:
    """``ops/_define.py`` -> ``ops``, ``posterior.py`` -> ``posterior``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports_of(source: str, package: str) -> Iterator[tuple[str, int]]:
    """Names imported from this package anywhere in a module of ``package``, even in functions, with their lines."""
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
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "lapal_ext")


def folder_imported(name: str) -> str:
    """The folder of an imported name: ``x`` in ``from lapal_ext import x`` if that is one, else the root."""
    _, *rest = name.split(".")
    return rest[0] if rest and rest[0] in ORDER else ROOT


def faults(folder: str, source: str, package: str) -> list[str]:
    place = ORDER.index(folder)
    return [
        f"line {line}: {folder} imports {other}, which is to its right in ORDER"
        for other, line in ((folder_imported(name), line) for name, line in imports_of(source, package))
        if other != folder and ORDER.index(other) > place
    ]


def module_name(path: Path) -> str:
    parts = ["lapal_ext", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def graph() -> dict[str, set[str]]:
    """The modules of the package that each of them imports."""
    known = {module_name(path): path for path in modules()}
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        found[name] = set()
        for imported, _ in imports_of(path.read_text(), package):
            target = imported if imported in known else imported.rpartition(".")[0]
            if target in known and target != name:
                found[name].add(target)
    return found


def test_no_two_modules_import_each_other() -> None:
    """Nor in a longer cycle, nor in functions: ``prepare`` raises with the cycle."""
    edges = graph()
    edges.pop("lapal_ext")  # the root imports all to its left, and all to its right may import the root
    graphlib.TopologicalSorter(edges).prepare()
    edges["lapal_ext.errors"] = {"lapal_ext.cli"}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(edges).prepare()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_left(path: Path) -> None:
    folder = folder_of(path)
    assert folder in ORDER, (
        f"lapal_ext/{folder} has no place in ORDER (tests/packaging/test_layering.py): say what it may import"
    )
    package = ".".join(["lapal_ext", *path.relative_to(PACKAGE).parent.parts])
    found = faults(folder, path.read_text(), package)
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


def test_relative_imports_inside_a_folder() -> None:
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
    """It loads no folder to the right of the root, no library for figures or studies, and no torch.compile (1.3 s)."""
    fresh = modules_after("import lapal_ext") - modules_after("import torch")
    right = ORDER[ORDER.index(ROOT) + 1 :]
    unwanted = {f"lapal_ext.{folder}" for folder in right} | set(HEAVY) | {"torch._dynamo", "torch._inductor"}
    assert not {name for name in fresh for heavy in unwanted if name == heavy or name.startswith(f"{heavy}.")}


def test_the_order_names_each_folder_once() -> None:
    assert len(set(ORDER)) == len(ORDER)
