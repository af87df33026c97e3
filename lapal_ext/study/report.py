"""The report of an experiment: a verdict, tables and figures, for Markdown and for the terminal."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.comparison import SIGNIFICANT, Ranking, default_reference, is_behind, rank_arms
from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished, read_experiment
from lapal_ext.study.figures import draw_figures
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import mean_and_error
from lapal_ext.study.strategies import describe, is_refitted
from lapal_ext.study.tables import Table, explain, make_tables, points

if TYPE_CHECKING:
    from rich.console import RenderableType

REPORT = "report.md"
_LINE = 118  # characters of a line of text in Markdown


class Verdict(NamedTuple):
    """What an experiment found."""

    best: str  # the best arm, which is printed bold
    rest: str  # by how much it is best, and more sentences


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
        reference = default_reference(finished.configuration)
    elif reference not in names:
        raise ValueError(f"--reference must be one of {', '.join(names)}, got {reference!r}")
    figures = draw_figures(folder, finished, reference)
    text = markdown(finished, reference, figures)
    replace_file(folder / REPORT, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return [folder / REPORT, *figures]


def markdown(finished: Finished, reference: str, figures: Sequence[Path]) -> str:
    """Make a report in Markdown."""
    configuration = finished.configuration
    priors = configuration.prior_precisions
    parts = {prior: make_tables(finished, reference, prior) for prior in priors}
    blocks = [f"# {configuration.title}"]
    for prior in priors:
        best, rest = verdict(finished, reference, prior)
        which = f"Prior precision {prior:g}: " if len(priors) > 1 else ""
        blocks.append(_fill(f"{which}**{best}** {rest}".strip()))
    blocks.append(_fill(_protocol(configuration)))
    for prior, of_prior in parts.items():
        blocks.append(f"## Prior precision {prior:g}")
        blocks += [block for table in of_prior for block in (table.title, _pipes(table)) if block]
    notes = explain([table for of_prior in parts.values() for table in of_prior])
    blocks.append("\n".join(_fill(f"- {note}", indent="  ") for note in notes))
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
    reference, prior = default_reference(configuration), configuration.prior_precisions[0]
    best, rest = verdict(finished, reference, prior)
    parts: list[RenderableType] = [
        Text(f"{configuration.title}, prior precision {prior:g}", style="bold"),
        Text.assemble((best, "bold"), " ", rest),
        Text(_protocol(configuration)),
    ]
    shown = [
        table._replace(columns=[column for column in table.columns if not column.extra])
        for table in make_tables(finished, reference, prior, new_labels)
    ]
    for title, columns in shown:
        grid = Grid(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in columns:
            grid.add_column(Text(column.heading), justify="right" if grid.columns else "left")
        for row in range(len(columns[0].cells)):
            grid.add_row(*(Text(column.cells[row], "bold" if row in column.bold else "") for column in columns))
        parts += ["", grid]
    return Group(*parts, "", *map(Text, explain(shown)))


def verdict(finished: Finished, reference: str, prior_precision: float) -> Verdict:
    """Say which usable arm is best, which are behind the reference, and what the others reach.

    In an experiment that absorbs labels, the best is the one after the largest number of new labels.
    """
    configuration = finished.configuration
    records = [record for record in finished.records if record.prior_precision == prior_precision]
    ranking = rank_arms(records, configuration, reference)
    named = describe(reference)
    sentences = [f"Within one standard error of it: {_listed(ranking, ranking.close)}."] if ranking.close else []
    if configuration.new_labels is None:
        measure, behind = "mean accuracy over the learning curve", _listed(ranking, ranking.behind)
        apart = "With true labels, which are unknown in practice"
    else:
        measure, apart = f"accuracy after {max(configuration.new_labels)} new labels", "For comparison"
        by_count = {added: rank_arms(records, configuration, reference, added) for added in configuration.new_labels}
        worst = {}  # for each arm that is behind at some count, the count where it is lowest
        for name in ranking.usable:
            counts = [added for added, of in by_count.items() if is_behind(of.differences[name])]
            if counts:
                worst[name] = min(counts, key=lambda added: float(by_count[added].differences[name].mean()))
        behind = "; ".join(
            f"{describe(name)} ({points(by_count[added].differences[name])} after {added})"
            for name, added in worst.items()
        )
    if configuration.seeds > 1:
        sentences.append(f"Behind {named} by two standard errors: {behind or 'none'}.")
    if others := [name for name in ranking.apart if name != reference]:
        sentences.append(f"{apart}: {_listed(ranking, others)}.")
    best, gain = _best(ranking, measure)
    return Verdict(best, " ".join([gain, *sentences]))


def _best(ranking: Ranking, measure: str) -> tuple[str, str]:
    """The best usable arm, and how far it is ahead of the reference."""
    if not ranking.usable:
        return "Best: none.", "No strategy here can be run in practice."
    best, named = ranking.usable[0], describe(ranking.reference)
    if best == ranking.reference:
        return f"Best: {named}.", f"It is the reference, and no usable strategy is ahead of it in {measure}."
    difference = ranking.differences[best]
    mean, error = mean_and_error(difference)
    side, sign = ("behind", -1.0) if float(mean) < 0.0 else ("ahead of", 1.0)
    text = f"It is {points(sign * difference).lstrip('+')} points {side} {named} in {measure}"
    if len(difference) > 1 and abs(float(mean)) < SIGNIFICANT * float(error):
        text += ", less than two standard errors"
    return f"Best: {describe(best)}.", f"{text}."


def _listed(ranking: Ranking, names: Sequence[str]) -> str:
    return "; ".join(
        f"{describe(name)}, the reference"
        if name == ranking.reference
        else f"{describe(name)} ({points(ranking.differences[name])})"
        for name in names
    )


def _protocol(configuration: Configuration) -> str:
    seeds = "1 seed" if configuration.seeds == 1 else f"{configuration.seeds} seeds"
    text = f"Mean ± standard error of {seeds}. {configuration.initial_labels} labels at the start"
    if configuration.experiment != UPDATING:
        few = configuration.subset is not None
        rows = f"{configuration.subset} candidates each" if few else "all unlabelled rows of the pool"
        text += f", {configuration.acquisitions} batches of {configuration.batch_size} among {rows}"
        text += f", {_learning(configuration)}"
    if configuration.feature_factor != 1.0:
        text += f", features multiplied by {configuration.feature_factor:g}"
    return f"{text}. All measures are of the plugin predictive on test rows."


def _learning(configuration: Configuration) -> str:
    """What happens after a batch."""
    every = configuration.refit_every
    if every == 0 or not any(map(is_refitted, configuration.strategies)):
        return "a closed-form update after every batch and never a refit"
    text = "a refit after every batch"
    if every != 1:
        text = f"a refit after every {every} batches and a closed-form update after each other batch"
    return (
        text if all(map(is_refitted, configuration.strategies)) else f"{text}, except where a name says never refitted"
    )


def _fill(text: str, indent: str = "") -> str:
    """Break a text into lines, but never around a "±"; ``indent`` begins all lines but the first."""
    joined = text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    return textwrap.fill(joined, _LINE, subsequent_indent=indent).replace("\N{NO-BREAK SPACE}", " ")


def _pipes(table: Table) -> str:
    """Write a table in Markdown."""
    heading = [column.heading for column in table.columns]
    rule = ("---", *["---:"] * (len(heading) - 1))
    marked = (
        [f"**{cell}**" if cell and row in column.bold else cell for row, cell in enumerate(column.cells)]
        for column in table.columns
    )
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *zip(*marked, strict=True)))
