"""The table of a comparison, in Markdown."""

import math
from collections.abc import Iterable

from benchmarks.peers.comparison import Outcome

HEAD = (
    "| work | rows | peer | ours, ms | peer, ms | faster by | ours, MiB | peer, MiB | both agree |\n"
    "|---|---|---|---:|---:|---:|---:|---:|---|"
)


def line(outcome: Outcome) -> str:
    """One row. Where the peer is faster, by the figures that are shown, the factor is below one and bold.

    A gap has its reason in the last column.
    """
    names = [outcome.work, outcome.size, outcome.peer]
    if outcome.gap:
        return _joined([*names, *["–"] * 5, outcome.gap])
    mark = "" if outcome.part == 1.0 else "*"
    shown = float(f"{outcome.ratio:.2g}") if outcome.ratio < 99.5 else round(outcome.ratio)
    factor = f"{shown:g}×"
    return _joined([
        *names,
        _milliseconds(outcome.ours),
        _milliseconds(outcome.theirs) + mark,
        f"**{factor}**" if shown < 1.0 else factor,
        _mib(outcome.memory),
        _mib(outcome.their_memory) + mark,
        outcome.agreement,
    ])  # fmt: skip


def _joined(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "/") for cell in cells) + " |"


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.2g}"


def _mib(memory: float) -> str:
    return "–" if math.isnan(memory) else f"{memory:,.0f}"
