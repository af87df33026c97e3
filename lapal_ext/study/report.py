"""Tables of an experiment, for Markdown and for the terminal, with means, standard errors and paired differences."""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished, read_experiment
from lapal_ext.study.figures import draw_figures
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import describe

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT = "report.md"
_REFERENCES = ("base", "margin", "random")  # of paired differences: the first one that was run
_SIGNIFICANT = 2.0  # standard errors
_LINE = 118  # characters of a line of text in Markdown
# Explanations of headings and strategies that contain a phrase.
_NOTES = {
    "AULC": "AULC: mean test accuracy over the learning curve. All other measures are of the end of the curve.",
    "vs ": "vs: paired difference, between models of the same seed.",
    "gap closed": "gap closed: part of the gain in mean accuracy from base to refit that a rule reaches, where "
    "the gain is more than two standard errors.",
    "NLL": "NLL: negative log-likelihood, mean per row.",
    "ECE": "ECE: expected calibration error.",
    "time [ms]": "time: of the update or the refit alone, median of 3 runs.",
    "ms per batch": "ms per batch: time of the choice of a batch alone.",
    "official rule": "official rule: gaussian curvature and newton steps, with a factor γ to tune (arXiv 2210.06112).",
    "line search": "line search: the default of this package, with categorical curvature and nothing to tune.",
    "monte carlo": "monte carlo: its probabilities are means over samples, which are less sure than those of a plugin "
    "predictive. Its time is that of the prediction.",
    "label before next pick": "label before next pick: every row is labelled before the next one is chosen.",
    "upper bound": "upper bound: uses true labels of the pool and of evaluation rows (which are not test rows), so it "
    "cannot be run in practice.",
}


class Column(NamedTuple):
    """One column of a table, with a cell for each strategy."""

    heading: str
    cells: list[str]
    extra: bool = False  # left out on the terminal, where a table must fit 80 columns


class Table(NamedTuple):
    """A table with a row for each strategy."""

    title: str  # may be empty
    columns: list[Column]  # first that of the strategies' names


def write_report(folder: Path, reference: str | None = None) -> list[Path]:
    """Write the tables and the figures of a finished experiment into its folder; return the files.

    Args:
        folder: of the experiment.
        reference: the strategy that paired differences are taken from.

    Raises:
        OSError: a file is missing, or cannot be read or written.
        ValueError: a file was not written by an experiment, or ``reference`` was not run.
    """
    finished = read_experiment(folder)
    names = finished.configuration.strategies
    if reference is None:
        reference = _default_reference(finished.configuration)
    elif reference not in names:
        raise ValueError(f"--reference must be one of {', '.join(names)}, got {reference!r}")
    figures = draw_figures(folder, finished)
    text = markdown(finished, reference, figures)
    replace_file(folder / REPORT, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return [folder / REPORT, *figures]


def _default_reference(configuration: Configuration) -> str:
    """Strategy that paired differences are taken from by default."""
    names = configuration.strategies
    return next((name for name in _REFERENCES if name in names), names[0])


def markdown(finished: Finished, reference: str, figures: Sequence[Path]) -> str:
    """Make a report in Markdown."""
    configuration = finished.configuration
    parts = {prior: tables(finished, reference, prior) for prior in configuration.prior_precisions}
    columns = next(iter(parts.values()))[0].columns
    notes = [textwrap.fill(note, _LINE, initial_indent="- ", subsequent_indent="  ") for note in _notes(columns)]
    blocks = [f"# {configuration.title}", textwrap.fill(_protocol(configuration), _LINE), "\n".join(notes)]
    for prior, of_prior in parts.items():
        blocks.append(f"## Prior precision {prior:g}")
        blocks += [block for table in of_prior for block in (table.title, _pipes(table)) if block]
    blocks += [f"![{path.stem.replace('_', ' ')}]({path.name})" for path in figures]
    versions = ", ".join(f"{name} {value}" for name, value in finished.environment.items() if value is not None)
    return "\n\n".join([*blocks, f"Made with {versions}.\n"])


def terminal(finished: Finished, new_labels: Sequence[int] | None = None) -> "RenderableType":
    """Make a report for the terminal, with the columns that fit 80 characters.

    Args:
        finished: the experiment, whose first prior precision is reported.
        new_labels: counts to report in an experiment that absorbs labels; all by default.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    configuration = finished.configuration
    reference, prior = _default_reference(configuration), configuration.prior_precisions[0]
    title = f"{configuration.title}, prior precision {prior:g}"
    parts: list[RenderableType] = [Text(title, style="bold"), Text(_protocol(configuration))]
    shown: list[Column] = []
    for table in tables(finished, reference, prior, new_labels):
        shown = [column for column in table.columns if not column.extra]
        grid = Grid(
            title=table.title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
        )
        for column in shown:
            grid.add_column(Text(column.heading), justify="right" if grid.columns else "left")
        for row in zip(*(column.cells for column in shown), strict=True):
            grid.add_row(*map(Text, row))
        parts += ["", grid]
    return Group(*parts, "", *map(Text, _notes(shown)))


def tables(
    finished: Finished, reference: str, prior_precision: float, new_labels: Sequence[int] | None = None
) -> list[Table]:
    """Make the tables of one prior precision: one per count of new labels, or a single one of learning curves."""
    configuration = finished.configuration
    records = [record for record in finished.records if record.prior_precision == prior_precision]
    if configuration.new_labels is None:
        return [_curve_table(records, configuration, reference)]
    counts = configuration.new_labels if new_labels is None else new_labels
    return [_updating_table(records, configuration, reference, added) for added in counts]


def _protocol(configuration: Configuration) -> str:
    seeds = "1 seed" if configuration.seeds == 1 else f"{configuration.seeds} seeds"
    text = f"Mean ± standard error of {seeds}. {configuration.initial_labels} labels at the start"
    if configuration.new_labels is None:
        few = configuration.subset is not None
        rows = f"{configuration.subset} candidates each" if few else "all unlabelled rows of the pool"
        text += f", {configuration.acquisitions} batches of {configuration.batch_size} among {rows}"
        text += ", a refit after every batch"
    if configuration.feature_factor != 1.0:
        text += f", features multiplied by {configuration.feature_factor:g}"
    return f"{text}. All measures are of the plugin predictive on test rows."


def _notes(shown: Sequence[Column]) -> list[str]:
    """Explain the strategies, which are in the first column, and the headings of the others."""
    strategies, *others = shown
    words = [*strategies.cells, *(column.heading for column in others)]
    return [note for phrase, note in _NOTES.items() if any(phrase in word for word in words)]


def _updating_table(records: Sequence[Record], configuration: Configuration, reference: str, added: int) -> Table:
    names = configuration.strategies
    column = partial(_column, names)

    def values(field: str) -> dict[str, Values]:  # [S] each
        """Values after the new labels. The base keeps those that it had before, and was not timed."""
        found = {}
        for name in names:
            counts, of_seeds = by_seed(records, UPDATING, name, field)
            if counts:
                found[name] = of_seeds[:, 0 if name == "base" else counts.index(configuration.initial_labels + added)]
        return found

    accuracy, nll = values("accuracy"), values("nll")
    columns = [
        Column("strategy", [describe(name) for name in names]),
        column("accuracy [%]", accuracy, "{:.1f}", 100),
        column(f"vs {reference}", _differences(accuracy, reference), "{:+.1f}", 100, extra=True),
        Column("gap closed", [_gap(accuracy, name) for name in names]),
        column("NLL [nats]", nll, "{:.3f}"),
        column(f"vs {reference}", _differences(nll, reference), "{:+.3f}", extra=True),
        column("ECE [%]", values("ece"), "{:.1f}", 100, extra=True),
        column("Brier", values("brier"), "{:.3f}", extra=True),
        column("time [ms]", values("seconds"), "{:.2f}", 1000),
    ]
    return Table("1 new label" if added == 1 else f"{added} new labels", columns)


def _curve_table(records: Sequence[Record], configuration: Configuration, reference: str) -> Table:
    names = configuration.strategies
    column = partial(_column, names)

    def curves(field: str) -> dict[str, Values]:  # [S, L] each
        return {name: by_seed(records, configuration.experiment, name, field)[1] for name in names}

    def ends(field: str) -> dict[str, Values]:  # [S] each
        return {name: of_seeds[:, -1] for name, of_seeds in curves(field).items() if of_seeds.size}

    area = ends("aulc")
    columns = [
        Column("strategy", [describe(name) for name in names]),
        column("AULC [%]", area, "{:.2f}", 100),
        column(f"vs {reference}", _differences(area, reference), "{:+.2f}", 100),
        column("accuracy [%]", ends("accuracy"), "{:.1f}", 100),
        column("NLL [nats]", ends("nll"), "{:.3f}", extra=True),
        column("ECE [%]", ends("ece"), "{:.1f}", 100, extra=True),
        column("Brier", ends("brier"), "{:.3f}", extra=True),
        column("ms per batch", {name: of.mean(axis=1) for name, of in curves("seconds").items()}, "{:.1f}", 1000),
    ]
    return Table("", columns)


def _column(
    names: Sequence[str],
    heading: str,
    values: Mapping[str, Values],  # [S] each
    form: str,
    factor: float = 1.0,
    *,
    extra: bool = False,
) -> Column:
    """Mean of each strategy and, if there are several seeds, its standard error; empty where there are no values."""
    cells = []
    for name in names:
        text = ""
        if name in values:
            mean, error = mean_and_error(factor * values[name])
            spread = f" ± {form.replace('+', '').format(error)}" if len(values[name]) > 1 else ""
            text = form.format(mean) + spread
        cells.append(text)
    return Column(heading, cells, extra)


def _differences(values: Mapping[str, Values], reference: str) -> dict[str, Values]:
    """Differences from the reference, seed by seed."""
    return {name: of_seeds - values[reference] for name, of_seeds in values.items() if name != reference}


def _gap(accuracy: Mapping[str, Values], name: str) -> str:
    """Share of the gain from base to refit that a rule reaches; "-" where this gain is not significant."""
    if name in ("base", "refit") or not {"base", "refit"} <= set(accuracy):
        return ""
    base = accuracy["base"]
    gain, error = mean_and_error(accuracy["refit"] - base)
    if float(gain) <= _SIGNIFICANT * float(error) or len(base) < 2:
        return "-"
    return f"{100 * float((accuracy[name] - base).mean() / gain):.0f} %"


def _pipes(table: Table) -> str:
    """Write a table in Markdown."""
    heading = [column.heading for column in table.columns]
    rule = ("---", *["---:"] * (len(heading) - 1))
    rows = zip(*(column.cells for column in table.columns), strict=True)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rows))
