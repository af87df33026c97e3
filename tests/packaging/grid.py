"""Which processor, compiler, Python and torch were tried together: the table of README.md, written by `matrix`."""

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
    ("macOS arm64", "AppleClang", "any", "no such machine; `csrc/CMakeLists.txt` follows torch's own extensions"),
    ("Windows x86-64", "MSVC", "any", "no such machine; without kernels the package is plain torch"),
)


RESULTS = ("runs", "compiles", "FAILED")


class Cell(NamedTuple):
    processor: str
    compiler: str  # "none" for the wheel without kernels
    python: str
    torch: str  # major and minor
    result: str  # one of RESULTS


def known(text: str) -> list[Cell]:
    """The results in the table of a text, which earlier calls have written."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table_of(text).splitlines()]
    return [
        Cell(*row[:3], torch, result)
        for row in rows
        for torch, result in zip(TORCHES, row[3:], strict=False)
        if result in RESULTS
    ]


def merged(cells: list[Cell], earlier: list[Cell]) -> list[Cell]:
    """Results with those of earlier calls, which they replace; only headers that compile do not replace a wheel."""
    found = {cell[:4]: cell for cell in earlier}
    for cell in cells:
        if cell.result != "compiles" or found.get(cell[:4], cell).result == "compiles":
            found[cell[:4]] = cell
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


def table_of(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def keep(cells: list[Cell], readme: Path = README) -> list[Cell]:
    """Writes results into the table, which keeps those of earlier calls; returns all of them."""
    text = readme.read_text(encoding="utf-8")
    found = merged(cells, known(text))
    before, _, rest = text.partition(BEGIN)
    readme.write_text("\n".join([before + BEGIN, *lines(found), END + rest.partition(END)[2]]), encoding="utf-8")
    return found
