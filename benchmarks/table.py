"""Run the workloads and print them beside their targets, in Markdown: ``python -m benchmarks.table``.

Takes about five minutes. ``--threads 2`` for two threads, ``--wall`` on a quiet machine, ``-k w4`` for some of them.
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
_COLUMNS = ("authors", "refit", "torch", "native")


def run_workloads(threads: int, wall: bool, select: str) -> dict[str, Any]:
    """What pytest-benchmark says of one run in a process of its own, whose thread pools obey ``threads``."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", "benchmarks/bench_workloads.py", f"--threads={threads}", "-q"]
        command += [f"--benchmark-json={report}", "--benchmark-columns=median", "-k", select]
        if not wall:
            command.append("--benchmark-timer=time.process_time")
        pools = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        # Threads that wait must sleep: spinning, they take the core from those that work wherever it is shared.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | pools
        done = subprocess.run(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0 or not report.exists():
            sys.exit(done.stdout)
        loaded: dict[str, Any] = json.loads(report.read_text())
        return loaded


def print_table(report: dict[str, Any], timer: str) -> None:
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        rows[info["workload"], info["size"]][info["arm"]] = info | {"ms": 1e3 * entry["stats"]["median"]}
    print(_stamp(report, timer))
    print("\n| workload | D/C | authors | refit | torch | other | native, ms | target | |")
    print("|---|---|---:|---:|---:|---:|---:|---|---|")
    notes = []
    for (workload, size), arms in rows.items():
        any_arm = next(iter(arms.values()))
        if any_arm["note"]:
            notes.append(f"{workload}: {any_arm['note']}.")
        native = arms.get("native", {}).get("ms")
        others = "; ".join(f"{name} {_cell(arm, native)}" for name, arm in arms.items() if name not in _COLUMNS)
        cells = [_cell(arms.get(name), native) for name in ("authors", "refit", "torch")]
        shown = "–" if native is None else f"**{native:.3g}**"
        target, verdict = _judge(any_arm["targets"], arms, native)
        print("|", " | ".join([workload, size, *cells, others or "–", shown, target, verdict]), "|")
    print("\nEach arm: milliseconds (how many times slower than native). * timed in part and scaled.")
    print(*notes, sep="\n")


def _milliseconds(arm: dict[str, Any]) -> float:
    return float(arm["ms"] * arm["scale"])


def _cell(arm: dict[str, Any] | None, native: float | None) -> str:
    if arm is None:
        return "–"
    mark = "" if arm["scale"] == 1 else "*"
    ratio = "" if native is None else f" ({_milliseconds(arm) / native:.3g}×)"
    return f"{_milliseconds(arm):.3g}{mark}{ratio}"


def _judge(targets: dict[str, float], arms: dict[str, dict[str, Any]], native: float | None) -> tuple[str, str]:
    wanted = ", ".join(f"≥ {ratio:.3g}× {name}" for name, ratio in targets.items())
    if not wanted or native is None:
        return wanted or "–", ""
    short = [name for name, ratio in targets.items() if name in arms and _milliseconds(arms[name]) < ratio * native]
    return wanted, "short of " + ", ".join(short) if short else "pass"


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
    options = parser.parse_args()
    # Processor time adds up over threads, so that two of them would look slower, not faster.
    wall = options.wall or options.threads > 1
    print_table(run_workloads(options.threads, wall, options.select), "wall" if wall else "processor")


if __name__ == "__main__":
    main()
