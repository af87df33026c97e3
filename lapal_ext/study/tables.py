"""Tables of an experiment: means, standard errors and paired differences, with the best arm first."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from lapal_ext.study.comparison import SIGNIFICANT, Ranking, ends, is_behind, rank_arms, stands_apart
from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import describe

_BEHIND = "▼"
# Explanations of headings, names of arms and marks that contain a phrase.
_NOTES = {
    "AULC": "AULC: mean test accuracy over the learning curve. All other measures are of the end of the curve.",
    "vs ": "vs: paired difference, between models of the same seed.",
    "gap closed": "gap closed: part of the gain in mean accuracy from base to refit that a rule reaches, where "
    "the gain is more than two standard errors.",
    "NLL": "NLL: negative log-likelihood, mean per row.",
    "ECE": "ECE: expected calibration error.",
    "time [ms]": "time: of the update, or of the refit and the update that it begins with; median of 3 runs.",
    "ms of choice": "ms of choice: time of the choice of a batch alone.",
    "ms of learning": "ms of learning: time of the refit or the update after a batch, without prediction.",
    _BEHIND: f"{_BEHIND}: behind the reference by two standard errors.",
    "official rule": "official rule: gaussian curvature and newton steps, with a factor γ to tune (arXiv 2210.06112).",
    "line search": "line search: the default of this package, with categorical curvature and nothing to tune.",
    "monte carlo": "monte carlo: its probabilities are means over samples, which are less sure than those of a plugin "
    "predictive. Its time is that of the prediction.",
    "never refitted": "never refitted: after the first fit, every batch is absorbed by an update in closed form.",
    "label before next pick": "label before next pick: every row is labelled before the next one is chosen.",
    "look-ahead, true labels": "look-ahead, true labels: uses those of the pool and of evaluation rows (which are not "
    "test rows), so it cannot be run in practice.",
}


class Column(NamedTuple):
    """One column of a table, with a cell for each arm."""

    heading: str
    cells: list[str]
    extra: bool = False  # left out on the terminal, where a table must fit 80 columns
    bold: frozenset[int] = frozenset()  # rows


class Table(NamedTuple):
    """A table with a row for each arm."""

    title: str  # may be empty
    columns: list[Column]  # first that of the arms' names


def make_tables(
    finished: Finished,
    reference: str,
    prior_precision: float,
    new_labels: Sequence[int] | None = None,
) -> list[Table]:
    """Make the tables of one prior precision; in each, the best usable arm is bold.

    An experiment that absorbs labels has one table for each count in ``new_labels``, by default for all. Others have
    one of the learning curves and, if there are three batches or more, one of their thirds.
    """
    configuration = finished.configuration
    records = [record for record in finished.records if record.prior_precision == prior_precision]
    if configuration.new_labels is None:
        ranking = rank_arms(records, configuration, reference)
        found = [_curve_table(records, configuration, ranking)]
        if (configuration.acquisitions or 0) >= 3:
            found.append(_thirds_table(records, configuration, ranking))
        return found
    counts = configuration.new_labels if new_labels is None else new_labels
    return [_updating_table(records, configuration, reference, added) for added in counts]


def explain(shown: Sequence[Table]) -> list[str]:
    """Explain the names of arms, the headings and the marks in tables, each once."""
    words = [table.title for table in shown]
    for table in shown:
        names, *others = table.columns
        words += names.cells
        for column in others:
            words += [column.heading, *(_BEHIND for cell in column.cells if _BEHIND in cell)]
    return [note for phrase, note in _NOTES.items() if any(phrase in word for word in words)]


def points(
    difference: Values,  # [S]
    digits: int = 2,
) -> str:
    """Write a paired difference of accuracies in points, with its standard error if there are several seeds."""
    return _cell(difference, f"{{:+.{digits}f}}", 100.0)


def _updating_table(records: Sequence[Record], configuration: Configuration, reference: str, added: int) -> Table:
    ranking = rank_arms(records, configuration, reference, added)
    names = list(ranking.differences)
    column = partial(_column, names)
    best = _best_row(ranking)

    def values(field: str) -> dict[str, Values]:  # [S] each
        return ends(records, configuration, field, added)

    accuracy, nll = values("accuracy"), values("nll")
    columns = [
        Column("strategy", [describe(name) for name in names], bold=best),
        column("accuracy [%]", accuracy, "{:.1f}", 100, bold=best),
        column(f"vs {reference}", _differences(accuracy, reference), "{:+.1f}", 100, extra=True, bold=best),
        Column("gap closed", [_gap(accuracy, name) for name in names]),
        column("NLL [nats]", nll, "{:.3f}"),
        column(f"vs {reference}", _differences(nll, reference), "{:+.3f}", extra=True),
        column("ECE [%]", values("ece"), "{:.1f}", 100, extra=True),
        column("Brier", values("brier"), "{:.3f}", extra=True),
        column("time [ms]", values("learning_seconds"), "{:.2f}", 1000),
    ]
    return Table("1 new label" if added == 1 else f"{added} new labels", columns)


def _curve_table(records: Sequence[Record], configuration: Configuration, ranking: Ranking) -> Table:
    names = list(ranking.differences)
    column = partial(_column, names)
    best = _best_row(ranking)

    def values(field: str) -> dict[str, Values]:  # [S] each
        return ends(records, configuration, field)

    def milliseconds(field: str) -> dict[str, Values]:  # [S] each
        """Mean over the batches."""
        curves = {name: by_seed(records, configuration.experiment, name, field)[1] for name in names}
        return {name: 1000.0 * of_seeds.mean(axis=1) for name, of_seeds in curves.items() if of_seeds.size}

    area = values("aulc")
    columns = [
        Column("strategy", [describe(name) for name in names], bold=best),
        column("AULC [%]", area, "{:.2f}", 100, bold=best),
        column(f"vs {ranking.reference}", _differences(area, ranking.reference), "{:+.2f}", 100, bold=best),
        column("accuracy [%]", values("accuracy"), "{:.1f}", 100, extra=True),
        column("NLL [nats]", values("nll"), "{:.3f}", extra=True),
        column("ECE [%]", values("ece"), "{:.1f}", 100, extra=True),
        column("Brier", values("brier"), "{:.3f}", extra=True),
        column("ms of choice per batch", milliseconds("choice_seconds"), "{:.1f}"),
        column("ms of learning per batch", milliseconds("learning_seconds"), "{:.1f}"),
    ]
    return Table("", columns)


def _thirds_table(records: Sequence[Record], configuration: Configuration, ranking: Ranking) -> Table:
    """Mean difference in accuracy in the first, the middle and the last third of the batches."""
    names = [name for name in ranking.differences if name != ranking.reference]
    experiment = configuration.experiment
    labels, reference = by_seed(records, experiment, ranking.reference, "accuracy")
    gains = {name: by_seed(records, experiment, name, "accuracy")[1] - reference for name in names}
    columns = [Column("strategy", [describe(name) for name in names])]
    for third in np.array_split(np.arange(1, len(labels)), 3):
        of_third = {name: gain[:, third].mean(axis=1) for name, gain in gains.items()}
        cells = [points(of_third[name]) + f" {_BEHIND}" * is_behind(of_third[name]) for name in names]
        usable = [row for row, name in enumerate(names) if not stands_apart(name)]
        best = frozenset(sorted(usable, key=lambda row: -float(of_third[names[row]].mean()))[:1])
        heading = " to ".join(str(labels[batch]) for batch in dict.fromkeys((third[0], third[-1])))
        columns.append(Column(f"{heading} labels", cells, bold=best))
    title = f"Thirds of the curve: mean difference in accuracy from {describe(ranking.reference)} [points]"
    return Table(title, columns)


def _best_row(ranking: Ranking) -> frozenset[int]:
    names = list(ranking.differences)
    return frozenset(names.index(name) for name in ranking.usable[:1])


def _column(
    names: Sequence[str],
    heading: str,
    values: Mapping[str, Values],  # [S] each
    form: str,
    factor: float = 1.0,
    *,
    extra: bool = False,
    bold: frozenset[int] = frozenset(),
) -> Column:
    """Make a column of means and standard errors; empty where there are no values."""
    cells = [_cell(values[name], form, factor) if name in values else "" for name in names]
    return Column(heading, cells, extra, bold)


def _cell(
    values: Values,  # [S]
    form: str,
    factor: float = 1.0,
) -> str:
    """Write a mean and, if there are several seeds, its standard error."""
    mean, error = mean_and_error(factor * values)
    spread = f" ± {form.replace('+', '').format(error)}" if len(values) > 1 else ""
    return form.format(mean) + spread


def _differences(values: Mapping[str, Values], reference: str) -> dict[str, Values]:
    """Differences from the reference, seed by seed."""
    return {name: of_seeds - values[reference] for name, of_seeds in values.items() if name != reference}


def _gap(accuracy: Mapping[str, Values], name: str) -> str:
    """Share of the gain from base to refit that a rule reaches; "-" where this gain is not significant."""
    if name in ("base", "refit") or not {"base", "refit"} <= set(accuracy):
        return ""
    base = accuracy["base"]
    gain, error = mean_and_error(accuracy["refit"] - base)
    if float(gain) <= SIGNIFICANT * float(error) or len(base) < 2:
        return "-"
    return f"{100 * float((accuracy[name] - base).mean() / gain):.0f} %"
