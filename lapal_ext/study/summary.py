"""What an experiment found, in Markdown: means with standard errors over seeds, and paired differences."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.experiment import CONFIGURATION, read_records
from lapal_ext.study.experiment_figures import draw_experiment
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import describe

REPORT = "report.md"
_REFERENCES = ("base", "margin", "random")  # the first that was run
_SIGNIFICANT = 2.0  # standard errors

_Row = tuple[str, ...]

_NOTES = {
    True: """\
Accuracy, expected calibration error (ECE) and differences of accuracy in percent and points, negative log-likelihood
(NLL) in nats, all of the plugin predictive on test rows. Differences are paired: of the same seed, from {reference}.
Time: of the update or the refit alone, median of 3. Monte Carlo has no weights: its probabilities are means over
samples (less sure than a plugin's, with or without new labels), and its time is that of the prediction.
"Gap closed" is the share of the way from base to refit in mean accuracy, shown where that is more than two standard
errors long. First-order, Monte Carlo and official rules have a γ to tune, newton, line search and joint have none.
""",
    False: """\
AULC is the mean test accuracy over the curve in percent; accuracy, NLL (nats), ECE (percent) and Brier are those at its
end. Differences of AULC are paired: of the same seed, from {reference}. Time: of the choice of a batch alone. "Label
before next pick" needs every pick answered before the next one is made. "Upper bound" uses true labels of the pool and
of evaluation rows, which are not test rows: nobody could run it.
""",
}


def write_report(folder: Path, reference: str | None = None) -> list[Path]:
    """Write the tables and the figures of a finished experiment into its folder; return the files.

    Args:
        folder: of the experiment.
        reference: strategy that paired differences are from.

    Raises:
        OSError: a file is missing, or cannot be read or written.
        ValueError: a file is not what an experiment wrote, or ``reference`` was not run.
    """
    records = read_records(folder)
    try:
        begun = json.loads((folder / CONFIGURATION).read_text(encoding="utf-8"))
        configuration, environment = begun["configuration"], begun["environment"]
        names = list(configuration["strategies"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIGURATION} is no configuration of an experiment") from error
    if reference is None:
        reference = next((name for name in _REFERENCES if name in names), names[0])
    elif reference not in names:
        raise ValueError(f"--reference must be one of {', '.join(names)}, got {reference!r}")
    figures = draw_experiment(folder, records, configuration)
    text = _markdown(records, configuration, environment, reference, figures)
    replace_file(folder / REPORT, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return [folder / REPORT, *figures]


def _markdown(
    records: Sequence[Record],
    configuration: dict[str, Any],
    environment: dict[str, Any],
    reference: str,
    figures: Sequence[Path],
) -> str:
    updates = configuration["experiment"] == UPDATING
    lines = [f"# {configuration['experiment'].replace('_', ' ').capitalize()} on {configuration['data']}", ""]
    lines += [f"Mean ± standard error of {configuration['seeds']} seeds. {_protocol(configuration)}", ""]
    lines += [_NOTES[updates].format(reference=describe(reference))]
    for prior in configuration["prior_precisions"]:
        of_prior = [record for record in records if record.prior_precision == prior]
        lines += [f"## Prior precision {prior:g}", ""]
        table = _updating_tables if updates else _curve_table
        lines += table(of_prior, configuration, reference)
    lines += [f"![{path.stem.replace('_', ' ')}]({path.name})\n" for path in figures]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if value is not None)
    return "\n".join([*lines, f"Made with {versions}.", ""])


def _protocol(configuration: dict[str, Any]) -> str:
    start = f"{configuration['initial_labels']} labels at the start"
    factor = configuration["feature_factor"]
    scaled = "" if factor == 1.0 else f", features multiplied by {factor:g}"
    if configuration["new_labels"] is not None:
        return f"{start}{scaled}."
    return (
        f"{start}, {configuration['acquisitions']} batches of {configuration['batch_size']} among "
        f"{configuration['subset']} candidates each, a refit after every batch{scaled}."
    )


def _updating_tables(records: Sequence[Record], configuration: dict[str, Any], reference: str) -> list[str]:
    lines = []
    names, initial = configuration["strategies"], configuration["initial_labels"]
    for added in configuration["new_labels"]:
        rows: list[_Row] = []
        ends = {
            name: {field: _at(records, name, field, initial + added) for field in ("accuracy", "nll", "ece", "brier")}
            for name in names
        }
        for name in names:
            values, from_reference = ends[name], ends[reference]
            seconds = None if name == "base" else _at(records, name, "seconds", initial + added)
            same = name == reference
            rows.append(
                (
                    describe(name),
                    _cell(values["accuracy"], "{:.1f}", 100),
                    "" if same else _cell(values["accuracy"] - from_reference["accuracy"], "{:+.1f}", 100),
                    _gap(ends, name),
                    _cell(values["nll"], "{:.3f}"),
                    "" if same else _cell(values["nll"] - from_reference["nll"], "{:+.3f}"),
                    _cell(values["ece"], "{:.1f}", 100),
                    _cell(values["brier"], "{:.3f}"),
                    "" if seconds is None else _cell(seconds, "{:.2f}", 1000),
                )
            )
        title = ("strategy", "accuracy", f"vs {reference}", "gap closed", "NLL", f"vs {reference}", "ECE", "Brier")
        lines += [f"{added} new labels", "", *_table((*title, "ms"), rows), ""]
    return lines


def _at(records: Sequence[Record], name: str, field: str, labels: int) -> Values:  # [S]
    """Values at a label count; the base stays what it was."""
    counts, values = by_seed(records, UPDATING, name, field)
    return values[:, 0 if name == "base" else counts.index(labels)]


def _gap(ends: dict[str, dict[str, Values]], name: str) -> str:
    """Share of the way from base to refit, where the way is longer than its noise."""
    if name in ("base", "refit") or not {"base", "refit"} <= set(ends):
        return ""
    base = ends["base"]["accuracy"]
    way, error = mean_and_error(ends["refit"]["accuracy"] - base)
    if float(way) <= _SIGNIFICANT * float(error) or len(base) < 2:
        return "-"
    return f"{100 * float((ends[name]['accuracy'] - base).mean() / way):.0f} %"


def _curve_table(records: Sequence[Record], configuration: dict[str, Any], reference: str) -> list[str]:
    experiment, names = configuration["experiment"], configuration["strategies"]

    def final(name: str, field: str) -> Values:  # [S]
        return by_seed(records, experiment, name, field)[1][:, -1]

    start = final(reference, "aulc")
    rows = [
        (
            describe(name),
            _cell(final(name, "aulc"), "{:.2f}", 100),
            "" if name == reference else _cell(final(name, "aulc") - start, "{:+.2f}", 100),
            _cell(final(name, "accuracy"), "{:.1f}", 100),
            _cell(final(name, "nll"), "{:.3f}"),
            _cell(final(name, "ece"), "{:.1f}", 100),
            _cell(final(name, "brier"), "{:.3f}"),
            _cell(by_seed(records, experiment, name, "seconds")[1].mean(axis=1), "{:.1f}", 1000),
        )
        for name in names
    ]
    title = ("strategy", "AULC", f"vs {reference}", "accuracy", "NLL", "ECE", "Brier", "ms per batch")
    return [*_table(title, rows), ""]


def _cell(
    values: Values,  # [S]
    form: str,
    factor: float = 1.0,
) -> str:
    mean, error = mean_and_error(factor * np.asarray(values))
    of_one = len(values) == 1
    return form.format(mean) if of_one else f"{form.format(mean)} ± {form.replace('+', '').format(error)}"


def _table(title: _Row, rows: Sequence[_Row]) -> list[str]:
    rule = ("---", *["---:"] * (len(title) - 1))
    return [f"| {' | '.join(row)} |" for row in (title, rule, *rows)]
