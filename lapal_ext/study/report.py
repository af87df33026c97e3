"""What the demo prints and writes: two tables that fit 80 columns, the kernels that ran, and every record as CSV.

Bold only repeats what a star says, so that a redirected table reads the same.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from lapal_ext import ops
from lapal_ext.atomic_file import replace_file
from lapal_ext.study.protocols import ACTIVE_LEARNING, UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.run import DEMO_ACTIVE, DEMO_UPDATING

UPDATING_NOTES = """\
[1] gaussian curvature, newton step, gamma = 10 (arXiv 2210.06112)
[2] categorical curvature, line search, gamma = 1: nothing to tune
[3] fit_map to convergence on all labels, old and new
*   best mean without a refit
All at prior precision 10, from the same fitted mean. Time: of the update or the
refit alone, median of 3 runs per seed. Log-likelihood: mean per test row, of
the plugin predictive."""
ACTIVE_NOTES = """\
[4] label before next pick: every pick is answered before the next one is made
[5] upper bound: uses true labels, of the pool and of evaluation rows (which are
    not the test rows), so that nobody could run it
*   best mean of the strategies that need no answer before the batch is complete
AULC: mean test accuracy over the curve. vs top-b: paired difference of AULC.
Per seed, all start from the same labels and choose among all unlabelled rows of
the same pool; refit after every batch."""

_UPDATING_TITLES = {
    "base": "base, no new labels",
    "official_10": "paper's rule [1]",
    "line_search": "ours [2]",
    "refit": "refit [3]",
}
_ACTIVE_TITLES = {
    "random": "random",
    "margin": "margin,\ntop-b",
    "margin_predicted": "sequential,\npredicted\nlabels",
    "margin_true": "sequential,\ntrue labels\n[4]",
    "look_ahead_true": "look-ahead,\ntrue labels\n[5]",
}
_WITHOUT_REFIT = ("base", "official_10", "line_search")
_WITHOUT_ANSWERS = ("random", "margin", "margin_predicted")
_NOTHING = Text("-")


def updating_table(records: Sequence[Record], new_labels: Sequence[int]) -> Table:
    """Accuracy, log-likelihood and time after some numbers of new labels, mean and standard error over seeds."""
    (initial,), _ = by_seed(records, UPDATING, "base", "accuracy")
    table = _table(f"Absorbing new labels into a model fitted to {initial}")
    table.add_column("new\nlabels", justify="right")
    table.add_column("\nstrategy")
    for title in ("accuracy\n[%]", "log-likelihood\n[nats]", "time\n[ms]"):
        table.add_column(title, justify="right")
    for added in new_labels:
        accuracy, likelihood, seconds = (
            {name: _after(records, name, field, initial + added) for name in DEMO_UPDATING}
            for field in ("accuracy", "log_likelihood", "seconds")
        )
        columns = (
            _cells(accuracy, "{:.1f}", 100, among=_WITHOUT_REFIT),
            _cells(likelihood, "{:.3f}", among=_WITHOUT_REFIT),
            _cells(seconds, "{:.2f}", 1000),
        )
        for name in DEMO_UPDATING:
            heading = f"+{added}" if name == DEMO_UPDATING[0] else ""
            table.add_row(heading, Text(_UPDATING_TITLES[name]), *(column[name] for column in columns))
        table.add_section()
    return table


def active_learning_table(records: Sequence[Record]) -> Table:
    """Accuracy at every label count, its mean over the curve, paired differences of that, and time per batch."""
    table = _table("Active learning: test accuracy [%]")
    table.add_column("\n\nlabels")
    for name in DEMO_ACTIVE:
        table.add_column(Text(_ACTIVE_TITLES[name]), justify="right", vertical="bottom")

    def add_row(heading: str, cells: Mapping[str, Text]) -> None:
        table.add_row(heading, *(cells[name] for name in DEMO_ACTIVE))

    curves = {name: by_seed(records, ACTIVE_LEARNING, name, "accuracy") for name in DEMO_ACTIVE}
    label_counts, _ = curves["margin"]
    for column, labels in enumerate(label_counts):
        accuracy = {name: values[:, column] for name, (_, values) in curves.items()}
        add_row(str(labels), _cells(accuracy, "{:.1f}", 100, among=_WITHOUT_ANSWERS))
    table.add_section()
    area = {name: values.mean(axis=1) for name, (_, values) in curves.items()}
    add_row("AULC", _cells(area, "{:.1f}", 100, among=_WITHOUT_ANSWERS))
    gain = {name: None if name == "margin" else values - area["margin"] for name, values in area.items()}
    add_row("vs top-b", _cells(gain, "{:+.1f}", 100))
    seconds = {name: by_seed(records, ACTIVE_LEARNING, name, "seconds")[1].mean(axis=1) for name in DEMO_ACTIVE}
    add_row("ms/batch", _cells(seconds, "{:.1f}", 1000))
    return table


def kernels_used() -> str:
    """Which kernels serve the study, for which instruction set, and if not all of them are native, why."""
    info = ops.build_info()
    if not info["native"]:
        return f"pure torch reference ({info['reason']})"
    missing = [name for name in sorted(ops.OPS) if ops.backend(name) == "reference"]
    others = f"; pure torch reference for {', '.join(missing)}" if missing else ""
    return f"native, {info['instruction_set']}{others}"


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row per record, in the order measured; empty where nothing was timed."""

    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Record._fields)
            writer.writerows(records)

    replace_file(path, write)


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )


def _after(records: Sequence[Record], strategy: str, field: str, labels: int) -> Values | None:  # [S]
    """Values of a strategy at a label count; the base is what it was, and nothing was timed for it."""
    if strategy == "base" and field == "seconds":
        return None
    counts, values = by_seed(records, UPDATING, strategy, field)
    return values[:, 0 if strategy == "base" else counts.index(labels)]


def _cells(
    values: Mapping[str, Values | None],  # [S] each
    form: str,
    factor: float = 1.0,
    among: Sequence[str] = (),
) -> dict[str, Text]:
    """Mean and standard error per strategy; of those ``among``, the best mean starred and bold unless all are equal."""
    summaries = {name: mean_and_error(factor * of) for name, of in values.items() if of is not None}
    means = [float(summaries[name][0]) for name in among]
    cells = {}
    for name in values:
        if name not in summaries:
            cells[name] = _NOTHING
            continue
        mean, error = summaries[name]
        text = f"{form.format(mean)} ± {form.replace('+', '').format(error)}"
        is_best = name in among and float(mean) == max(means) > min(means)
        cells[name] = Text(f"*{text}", style="bold") if is_best else Text(text)
    return cells
