"""Which processor, compiler, Python and torch were tried together: results of `matrix`, kept and printed as a table."""

import json
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- made by python3 -m tests.packaging.matrix -->", "<!-- end -->"
TORCHES = ("2.10", "2.11", "2.12", "2.13", "2.14")
REFUSED = (
    ("any", "any", "3.9 and older", "pip: `requires-python`"),
    ("any", "any", "free-threaded", "`setup.py`: the kernels have not been checked without the GIL"),
    ("any", "any", "any, torch 2.9 and older", "pip: `torch>=2.10`; CMake: `lapal_ext needs torch>=2.10`"),
)
UNTESTED = (
    ("x86-64", "g++", "3.10, 3.12, 3.13", "not in the calls so far; `--all` runs them"),
    ("macOS arm64", "AppleClang", "any", "no such machine; `csrc/CMakeLists.txt` follows torch's own extensions"),
    ("Windows x86-64", "MSVC", "any", "no such machine; without kernels the package is plain torch"),
)


class Cell(NamedTuple):
    processor: str
    compiler: str  # "none" for the wheel without kernels
    python: str
    torch: str  # major and minor
    result: str  # "runs", "compiles" or "FAILED"
    detail: str


def keep(cells: list[Cell], file: Path) -> list[Cell]:
    """Adds results to those of earlier calls, replaces the same cell, and returns all of them."""
    known = [Cell(*cell) for cell in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []
    found = {cell[:4]: cell for cell in known}
    for cell in cells:
        if cell.result != "compiles" or found.get(cell[:4], cell).result == "compiles":
            found[cell[:4]] = cell
    file.write_text(json.dumps(sorted(found.values()), indent=0) + "\n", encoding="utf-8")
    return sorted(found.values())


def lines(cells: list[Cell]) -> list[str]:
    """The table: one line for each processor, compiler and Python; one column for each torch."""
    table = [f"| processor | compiler | Python | {' | '.join(TORCHES)} |", "|---|---|---|" + "---|" * len(TORCHES)]
    for first in sorted({cell[:3] for cell in cells}, key=_order):
        found = {cell.torch: cell.result for cell in cells if cell[:3] == first}
        table.append(f"| {' | '.join((*first, *(found.get(torch, 'untested') for torch in TORCHES)))} |")
    for result, entries in (("refused", REFUSED), ("untested", UNTESTED)):
        table += [f"| {' | '.join(where)} | {result}: {reason} |" + " |" * 4 for *where, reason in entries]
    return table


def _order(first: tuple[str, ...]) -> tuple[object, ...]:
    processor, compiler, python = first
    return processor != "x86-64", processor, compiler == "none", compiler, [int(part) for part in python.split(".")]


def write_readme(cells: list[Cell]) -> None:
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text("\n".join([before + BEGIN, *lines(cells), END + after]), encoding="utf-8")
