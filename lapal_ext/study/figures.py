"""The figures of an experiment: learning curves, gain over random, time against accuracy, decision boundaries."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogLocator, MaxNLocator

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.boundaries import draw_boundaries
from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import ACTIVE_STRATEGIES, describe

_RESOLUTION = 200  # dots per inch
_BAND_OPACITY = 0.18
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 3.6,
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.08,
}
# Colour and marker by the beginning of a strategy's name; dashes and the fill of the marker say which labels it uses.
# Most colours are of the Okabe-Ito palette, which colour-blind people can tell apart.
_LOOKS = {
    "random": ("#7F7F7F", "x"),
    "margin": ("#0072B2", "o"),
    "entropy": ("#56B4E9", "v"),
    "badge": ("#D55E00", "s"),
    "bait": ("#009E73", "^"),
    "typiclust": ("#E69F00", "P"),
    "coreset": ("#8C564B", "d"),
    "bald": ("#CC79A7", "*"),
    "gradient_norm": ("#000000", "p"),
    "look_ahead_true": ("#000000", "D"),
    "look_ahead_predicted": ("#D55E00", "D"),
    "expected_error_reduction": ("#E69F00", "h"),
    "base": ("#7F7F7F", ""),
    "refit": ("#000000", "D"),
    "line_search": ("#0072B2", "o"),
    "joint": ("#000075", "*"),
    "newton": ("#56B4E9", "v"),
    "first_order_0.001": ("#F0E442", "P"),
    "first_order_0.005": ("#E69F00", "P"),
    "monte_carlo_0.01": ("#8C564B", "d"),
    "monte_carlo_0.05": ("#C49C94", "d"),
    "official_1": ("#009E73", "^"),
    "official_3": ("#66C2A5", "^"),
    "official_10": ("#D55E00", "s"),
    "official_30": ("#CC79A7", "s"),
}
# Fill of a marker by the dashes of its line.
_FILLS: dict[str, Literal["full", "left", "none"]] = {"-": "full", "--": "left", ":": "none"}
_CONTEXT = ("random", "margin")  # in every panel
_USUAL_PRIOR = 10.0  # of figures with a single prior precision, if it was run
_WIDTH, _HEIGHT = 3.5, 3.2  # of a panel, inches


class Drawing(NamedTuple):
    """What is drawn into a figure or a part of one, and the size that it needs in inches."""

    width: float
    height: float
    draw: Callable[[FigureBase], None]


class Line(NamedTuple):
    """How a strategy is drawn."""

    label: str
    colour: str
    marker: str
    dashes: str


def draw_figures(folder: Path, finished: Finished) -> list[Path]:
    """Write all figures of an experiment as PNG files; return their paths."""
    configuration = finished.configuration
    drawings = {"learning_curves": learning_curves(finished)}
    if configuration.experiment != UPDATING and "random" in configuration.strategies:
        drawings["gain_over_random"] = _curves(finished, "random")
    drawings["time_vs_accuracy"] = _times(finished)
    drawings["decision_boundaries"] = Drawing(7.2, 2.8, draw_boundaries)
    paths = [folder / f"{name}.png" for name in drawings]
    for path, drawing in zip(paths, drawings.values(), strict=True):
        write_figure(path, [drawing])
    return paths


def write_figure(path: Path, drawings: Sequence[Drawing]) -> None:
    """Write drawings as one PNG file, one above the other."""
    with mpl.rc_context(_STYLE):
        heights = [drawing.height for drawing in drawings]
        size = max(drawing.width for drawing in drawings), sum(heights)
        figure = Figure(figsize=size, layout="constrained")
        parts = figure.subfigures(len(drawings), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, drawing in zip(parts, drawings, strict=True):
            drawing.draw(part)
        replace_file(path, lambda scratch: figure.savefig(scratch, dpi=_RESOLUTION, format="png"))


def learning_curves(finished: Finished) -> Drawing:
    """Draw how a model gets better with labels: for every prior precision in ``updating``, else for the usual one."""
    return _absorbing(finished) if finished.configuration.experiment == UPDATING else _curves(finished, None)


def _usual_prior(finished: Finished) -> tuple[float, list[Record]]:
    """Return the prior precision of figures with a single one, and its records."""
    priors = finished.configuration.prior_precisions
    prior = _USUAL_PRIOR if _USUAL_PRIOR in priors else priors[0]
    return prior, [record for record in finished.records if record.prior_precision == prior]


def _line(name: str) -> Line:
    known = name if name in _LOOKS else name.removesuffix("_predicted").removesuffix("_true")
    dashes = "--" if name.endswith("_predicted") else ":" if name.endswith("_true") else "-"
    return Line(describe(name), *_LOOKS[known], dashes)


def _draw_band(
    axes: Axes,
    x: Sequence[int],  # [L]
    values: Values,  # [S, L]
    line: Line,
) -> None:
    """Draw the mean over seeds, and one standard error to either side of it."""
    mean, error = mean_and_error(values)
    axes.fill_between(x, mean - error, mean + error, color=line.colour, alpha=_BAND_OPACITY, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.plot(
        x,
        mean,
        color=line.colour,
        marker=line.marker,
        fillstyle=_FILLS[line.dashes],
        linestyle=line.dashes,
        label=line.label,
    )


def _curves(finished: Finished, reference: str | None) -> Drawing:
    """Accuracy over labels, or its paired difference from a strategy; one panel for each kind of strategy."""
    configuration = finished.configuration
    names, experiment = configuration.strategies, configuration.experiment
    prior, records = _usual_prior(finished)
    top_b = [name for name in ACTIVE_STRATEGIES if not name.endswith(("_predicted", "_true"))]
    panels = {
        "one batch at once": [name for name in names if name in top_b],
        "sequential": [name for name in names if name in ACTIVE_STRATEGIES and name not in top_b],
        "look-ahead": [name for name in names if name not in ACTIVE_STRATEGIES],
    }
    if not set(panels["one batch at once"]) - set(_CONTEXT) and any(list(panels.values())[1:]):
        panels["one batch at once"] = []
    shown = {title: members for title, members in panels.items() if members}

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        start = None if reference is None else by_seed(records, experiment, reference, "accuracy")[1]
        for panel, (title, members) in zip(axes, shown.items(), strict=True):
            context = [name for name in names if name in _CONTEXT and name not in members]
            for name in (*context, *members):
                labels, values = by_seed(records, experiment, name, "accuracy")
                _draw_band(panel, labels, 100.0 * (values if start is None else values - start), _line(name))
            panel.set(title=title, xlabel="labels")
        axes[0].set_ylabel("test accuracy [%]" if start is None else f"accuracy, difference from {reference} [points]")
        _finish(figure, axes, configuration, f"prior precision {prior:g}")

    return Drawing(_WIDTH * max(2, len(shown)), _HEIGHT + 1.4, draw)


def _absorbing(finished: Finished) -> Drawing:
    """Accuracy and negative log-likelihood over new labels; one row for each prior precision."""
    configuration = finished.configuration
    priors, names, added = configuration.prior_precisions, configuration.strategies, configuration.new_labels or ()

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots(len(priors), 2, squeeze=False)
        for (left, right), prior in zip(axes, priors, strict=True):
            records = [record for record in finished.records if record.prior_precision == prior]
            for panel, field, factor in ((left, "accuracy", 100.0), (right, "nll", 1.0)):
                for name in names:
                    _, values = by_seed(records, UPDATING, name, field)
                    along = np.repeat(values, len(added), axis=1) if name == "base" else values
                    _draw_band(panel, added, factor * along, _line(name))
                panel.set_xscale("log")
                panel.set_xticks(added, labels=[f"+{count}" for count in added])
                panel.minorticks_off()
                panel.set_xlabel(f"new labels, after {configuration.initial_labels} at the start")
            _limit(left, records, names, "accuracy", 100.0)
            _limit(right, records, names, "nll", -1.0)
            left.set(title=f"prior precision {prior:g}", ylabel="test accuracy [%]")
            right.set(title=f"prior precision {prior:g}", ylabel="negative log-likelihood [nats]")
        note = "Lines: mean of {}. Bands: one standard error. The tables have what lies outside a panel."
        _finish(figure, list(axes.ravel()), configuration, "", note)

    return Drawing(2 * _WIDTH, _HEIGHT * len(priors) + 1.4, draw)


def _limit(axes: Axes, records: Sequence[Record], names: Sequence[str], field: str, factor: float) -> None:
    """Cut off rules that diverge, so that the others can be told apart; less is better if the factor is negative."""
    if "base" not in names:
        return
    means = {name: factor * mean_and_error(by_seed(records, UPDATING, name, field)[1])[0] for name in names}
    base, best = float(means["base"][0]), max(float(mean.max()) for mean in means.values())
    ends = [abs(base - 1.5 * (best - base)), abs(best + 0.3 * (best - base))]
    low, high = axes.get_ylim()
    if best > base:
        axes.set_ylim(max(low, min(ends)), min(high, max(ends)))


def _times(finished: Finished) -> Drawing:
    """Time of an update or of a choice against the accuracy that it leads to; one point for each strategy."""
    configuration = finished.configuration
    experiment, added = configuration.experiment, configuration.new_labels
    prior, records = _usual_prior(finished)

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        for name in configuration.strategies:
            if name == "base":
                continue
            seconds = by_seed(records, experiment, name, "seconds")[1]
            reached = by_seed(records, experiment, name, "aulc" if added is None else "accuracy")[1][:, -1]
            x, dx = mean_and_error(1000.0 * (seconds.mean(axis=1) if added is None else seconds[:, -1]))
            y, dy = mean_and_error(100.0 * reached)
            look = _line(name)
            axes.errorbar(
                float(x),
                float(y),
                float(dy),
                float(dx),
                color=look.colour,
                marker=look.marker,
                fillstyle=_FILLS[look.dashes],
                markersize=6,
                elinewidth=0.8,
                linestyle="none",
                label=look.label,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel("time to choose a batch [ms]" if added is None else f"time to absorb {max(added)} labels [ms]")
        axes.set_ylabel("mean accuracy over the curve [%]" if added is None else "test accuracy [%]")
        note = "Points: mean of {}. Bars: one standard error."
        _finish(figure, [axes], configuration, f"prior precision {prior:g}", note)

    return Drawing(2 * _WIDTH, _HEIGHT + 1.6, draw)


def _finish(
    figure: FigureBase,
    axes: Sequence[Axes],
    configuration: Configuration,
    setting: str,
    note: str = "Lines: mean of {}. Bands: one standard error to either side.",
) -> None:
    """Add one legend for all panels, and a line that says what is drawn."""
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    seeds = "1 seed" if configuration.seeds == 1 else f"{configuration.seeds} seeds"
    where = ", ".join(filter(None, (configuration.title, setting)))
    figure.suptitle(f"{where}. {note.format(seeds)}", fontsize=7.5)
