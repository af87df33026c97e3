"""Run the workloads and print them beside their targets, in Markdown: ``python -m benchmarks.table``.

Takes about five minutes. ``--threads 2`` for two threads, ``--wall`` on a quiet machine, ``-k w4`` for some of them,
``--brief`` for the table of benchmarks/README.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
_COLUMNS = ("authors", "refit", "torch")
_ENOUGH = 5  # rounds, for the fastest of them to mean anything


def run_workloads(threads: int, wall: bool, select: str) -> dict[str, Any]:
    """The report of pytest-benchmark on one run, in a separate process whose thread pools have ``threads`` threads."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "benchmarks/workloads", f"--threads={threads}", "-q"]
        command += [f"--benchmark-json={report}", "--benchmark-columns=median", "-k", select]
        if not wall:
            command.append("--benchmark-timer=time.process_time")
        pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        # Waiting threads must sleep: if they spin, they slow the working threads that share their core.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | pools
        done = subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0 or not report.exists():
            sys.exit(done.stdout)
        loaded: dict[str, Any] = json.loads(report.read_text())
        return loaded


Rows = dict[tuple[str, str], dict[str, dict[str, Any]]]
"""(workload, size) -> arm -> what the report says about it."""


def rows_of(report: dict[str, Any]) -> Rows:
    rows: Rows = defaultdict(dict)
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        rows[info["workload"], info["size"]][info["arm"]] = info | {
            "ms": 1e3 * entry["stats"]["median"],
            "rounds": entry["stats"]["rounds"],
        }
    return rows


def print_table(report: dict[str, Any], timer: str) -> None:
    print(_stamp(report, timer))
    print("\n| workload | D/C | authors | refit | torch | other | native, ms | limit, ms | target | |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|---|")
    notes = []
    for (workload, size), arms in rows_of(report).items():
        any_arm = next(iter(arms.values()))
        if any_arm["note"]:
            notes.append(f"{workload}: {any_arm['note']}.")
        native = arms.pop("native", None)
        cells = [_cell(arms.get(name)) for name in _COLUMNS]
        others = "; ".join(f"{name} {_cell(arm)}" for name, arm in arms.items() if name not in _COLUMNS)
        took = "–" if native is None else f"**{native['ms']:.3g}**"
        limit = f"{1e3 * native['limit']:.3g}" if native and "limit" in native else "–"
        print("|", " | ".join([workload, size, *cells, others or "–", took, limit, *_judge(arms, native)]), "|")
    print("\nEach arm: milliseconds (how many times slower than native, timed in turns with it; the same ratio for the")
    print("fastest calls of both, if there are five rounds or more). * timed in part and scaled up.")
    if report["machine_info"]["lapal_ext"]["threads"] > 1:
        print("One thread: also the speed-up of multiply-adds in registers with the same threads, in the same minute.")
    print("Limit: the least time for the arithmetic, or for reading the pool, at the machine's own rates; one thread.")
    print(*notes, sep="\n")


def print_brief_table(report: dict[str, Any], timer: str) -> None:
    """The native arm's time, and how many times slower the others are; of the two plain torch arms, the faster one."""
    print(_stamp(report, timer))
    print("\n| workload | D/C | kernels, ms | authors | best torch | other |\n|---|---|---:|---:|---:|---|")
    for (workload, size), arms in rows_of(report).items():
        if "native" not in arms:
            continue
        native = arms.pop("native")
        ratios = {name: arm["ratio"] for name, arm in arms.items()}
        of_torch = [ratios.pop(name) for name in ("torch", "best torch") if name in ratios]
        cells = [f"{native['ms']:.3g}", _factor(ratios.pop("authors", None)), _factor(min(of_torch, default=None))]
        print("|", " | ".join([workload, size, *cells, "; ".join(f"{n} {_factor(r)}" for n, r in ratios.items())]), "|")


def _factor(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2g}×" if ratio < 100 else f"{ratio:.0f}×"


def _cell(arm: dict[str, Any] | None) -> str:
    if arm is None:
        return "–"
    mark = "" if arm["scale"] == 1 else "*"
    took = f"{arm['ms'] * arm['scale']:.3g}{mark}"
    if "ratio" not in arm:  # without kernels there is no native arm to compare with
        return took
    said = [f"{arm['ratio']:.3g}×"]
    if arm["rounds"] >= _ENOUGH:
        said.append(f"{arm['fastest_ratio']:.3g}×")
    if arm["gain"] is not None:
        said.append(f"registers {arm['gain']:.3g}×")
    return f"{took} ({'; '.join(said)})"


def _judge(arms: dict[str, dict[str, Any]], native: dict[str, Any] | None) -> tuple[str, str]:
    """The target; and whether it was reached, or else what factor the limit would allow."""
    targets = {name: ratio for arm in arms.values() for name, ratio in arm["targets"].items() if name in arms}
    wanted = ", ".join(f"≥ {ratio:.3g}× {name}" for name, ratio in targets.items())
    if not wanted or native is None:
        return wanted or "–", ""
    short = [name for name in targets if arms[name]["ratio"] < targets[name]]
    if not short:
        return wanted, "pass"
    at_limit = ""
    if "limit" in native:
        times = (arms[name]["ms"] * arms[name]["scale"] for name in short)
        at_limit = " (" + ", ".join(f"{time / native['limit'] / 1e3:.3g}×" for time in times) + " at the limit)"
    return wanted, "short of " + ", ".join(short) + at_limit


def _stamp(report: dict[str, Any], timer: str) -> str:
    machine = report["machine_info"]
    build = machine["lapal_ext"]
    kernels = build["instruction_set"] if build["native"] else f"no kernels, {build['reason']}"
    missing = ", ".join(f"`{name}`" for name in build["reference_ops"]) or "none"
    return (
        f"{machine['cpu'].get('brand_raw', machine['processor'])} ({kernels}), torch {build['torch']}, commit "
        f"{machine['commit'] or 'unknown'}, threads: {build['threads']}, medians of {timer} time. "
        f"Ops without a kernel: {missing}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="wall time rather than processor time, for one thread")
    parser.add_argument("-k", dest="select", default="", metavar="EXPRESSION", help="as in pytest: which workloads")
    parser.add_argument("--brief", action="store_true", help="factors alone, as in benchmarks/README.md")
    options = parser.parse_args()
    # Processor time adds up over threads, so that two of them would look slower, not faster.
    wall = options.wall or options.threads > 1
    write = print_brief_table if options.brief else print_table
    write(run_workloads(options.threads, wall, options.select), "wall" if wall else "processor")


if __name__ == "__main__":
    main()
