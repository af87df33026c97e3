"""The package never runs code that comes from data, and imports nothing but its declared dependencies."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest

import lapal_ext

PACKAGE = Path(lapal_ext.__file__).parent
DEPENDENCIES = {"torch>=2.10", "numpy", "safetensors", "typing_extensions"}

# Folders that need an extra: they may import its packages at their top.
BEHIND_EXTRAS = ("study", "interop")
# Modules whose distribution has another name.
DISTRIBUTIONS = {"sklearn": "scikit_learn", "skactiveml": "scikit_activeml", "laplace": "laplace_torch"}

# Modules that read pickles or run code from data, and builtins, through which banned functions could be called.
BANNED_MODULES = {
    "pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "code", "runpy", "builtins",
}  # fmt: skip
BANNED_BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
BANNED_CALLS = {"os.system", "os.popen", "torch.save", "torch.jit.load", "torch.hub.load", "pandas.read_pickle"}
# Calls that are safe only with this keyword and this value, written out.
NEEDED = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "numpy.lib.format.read_array": ("allow_pickle", False),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(node: ast.AST) -> list[tuple[str, str]]:
    """``import numpy as np`` -> ("np", "numpy"), ``from os import system`` -> ("system", "os.system")."""
    if isinstance(node, ast.Import):
        return [(a.asname or a.name.split(".")[0], a.name if a.asname else a.name.split(".")[0]) for a in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [(a.asname or a.name, f"{node.module}.{a.name}") for a in node.names]
    return []


def full_name(node: ast.expr, names: dict[str, str]) -> str:
    """``np.lib.format.read_array`` by its full name, if it consists of names alone."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else "?"


def faults(source: str) -> Iterator[str]:
    tree = ast.parse(source)
    names = {name: full for node in ast.walk(tree) for name, full in imported(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            paths = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"line {node.lineno}: import {path}" for path in paths if path.split(".")[0] in BANNED_MODULES)
        if isinstance(node, ast.Name) and node.id in BANNED_BUILTINS and isinstance(node.ctx, ast.Load):
            yield f"line {node.lineno}: {node.id}"
        if not isinstance(node, ast.Call):
            continue
        called = full_name(node.func, names)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if called in BANNED_CALLS:
            yield f"line {node.lineno}: {called}"
        shell = keywords.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield f"line {node.lineno}: shell={ast.unparse(shell)}"
        if called in NEEDED:
            keyword, value = NEEDED[called]
            given = keywords.get(keyword)
            if not (isinstance(given, ast.Constant) and given.value is value):
                yield f"line {node.lineno}: {called} without {keyword}={value}"


def third_party(tree: ast.Module, *, everywhere: bool) -> set[str]:
    """Packages that a module imports when it is imported; or everywhere, in functions and for type checkers as well."""
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if not everywhere and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not everywhere and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        found |= {full.split(".")[0] for _, full in imported(node)}
        waiting += ast.iter_child_nodes(node)
    found -= set(sys.stdlib_module_names) | {"lapal_ext"}
    return {DISTRIBUTIONS.get(name, name) for name in found}


def declared() -> dict[str, str]:
    """Every requirement in the package's metadata, by name, with its extra or ""."""
    found: dict[str, str] = {}
    for requirement in requires("lapal_ext") or ():
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra == ["']([\w-]+)["']""", requirement)
        assert name, requirement
        found.setdefault(name[0].replace("-", "_"), extra[1] if extra else "")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_comes_from_data(path: Path) -> None:
    assert list(faults(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import joblib",
        "import builtins",
        "eval(text)",
        "run = exec",
        "compile(text, 'file', 'exec')",
        "import os\nos.system('ls')",
        "from os import popen as p\np('ls')",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "from torch import load\nload(path, weights_only=choice)",
        "import torch\ntorch.save({}, path)",
        "import torch\ntorch.hub.load('a', 'b')",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy.lib.format\nnumpy.lib.format.read_array(file)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "run(command, shell=choice)",
    ],
)
def test_code_from_data_is_found(source: str) -> None:
    assert len(list(faults(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path, mmap_mode='c', allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import re\nre.compile('a')",
        "network.eval()",
    ],
)
def test_safe_code_passes(source: str) -> None:
    assert list(faults(source)) == []


def test_the_dependencies_are_those_that_are_promised() -> None:
    requirements = [requirement for requirement in requires("lapal_ext") or () if "extra ==" not in requirement]
    assert {requirement.replace(" ", "").replace("-", "_") for requirement in requirements} == DEPENDENCIES


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_imported_is_declared(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert third_party(tree, everywhere=True) - set(declared()) == set()
    if path.relative_to(PACKAGE).parts[0] not in BEHIND_EXTRAS:
        always = {name for name, extra in declared().items() if not extra}
        assert third_party(tree, everywhere=False) - always == set()


def test_third_party_imports_are_found() -> None:
    source = """
import os, sklearn.linear_model
if TYPE_CHECKING:
    import a
else:
    import b
try:
    import c.d
finally:
    from e.f import g
def h():
    import i
"""
    assert third_party(ast.parse(source), everywhere=False) == {"scikit_learn", "b", "c", "e"}
    assert third_party(ast.parse(source), everywhere=True) == {"scikit_learn", "a", "b", "c", "e", "i"}
