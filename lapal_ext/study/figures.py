"""The figures of an experiment: learning curves with paired differences, and time against accuracy."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import LogLocator, MaxNLocator

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.comparison import Ranking, rank_arms
from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import chooser, describe, is_refitted, uses_unknown_labels

_RESOLUTION = 200  # dots per inch
_BAND_OPACITY = 0.13
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
# Colours by strategy. Most are of the Okabe-Ito palette, which colour-blind people can tell apart.
_COLOURS = {
    "random": "#000000",
    "margin": "#0072B2",
    "entropy": "#56B4E9",
    "uherding": "#D55E00",
    "maxherding": "#E69F00",
    "badge": "#CC79A7",
    "bait": "#009E73",
    "typiclust": "#8C564B",
    "coreset": "#9E9D24",
    "bald": "#882255",
    "gradient_norm": "#5E35B1",
    "look_ahead": "#B71C1C",
    "look_ahead_predicted": "#B71C1C",
    "expected_error_reduction": "#00A6A6",
    "base": "#7F7F7F",
    "refit": "#000000",
    "line_search": "#0072B2",
    "joint": "#000075",
    "newton": "#56B4E9",
    "first_order_0.001": "#F0E442",
    "first_order_0.005": "#E69F00",
    "monte_carlo_0.01": "#8C564B",
    "monte_carlo_0.05": "#C49C94",
    "official_1": "#009E73",
    "official_3": "#66C2A5",
    "official_10": "#D55E00",
    "official_30": "#CC79A7",
}
_PALER = 0.45  # towards white, for a variant of a strategy
_MARKERS = "osD^vPX*hp"
_BEST = 5  # usable arms that are drawn in colour, besides those of _ALWAYS and the reference
_ALWAYS = ("random", "base", "refit")
_MARKS = 8  # of a line, at most about as many
_TICKS = 8  # of an axis of accuracy, at most
_THIN = 0.7  # width of the line of an arm that is not among the best
_USUAL_PRIOR = 10.0  # of figures with a single prior precision, if it was run
_WIDTH, _HEIGHT = 3.5, 3.2  # of a panel, inches


class Drawing(NamedTuple):
    """What is drawn into a figure or a part of one, and the size that it needs in inches."""

    width: float
    height: float
    draw: Callable[[FigureBase], None]


class Look(NamedTuple):
    """How an arm is drawn."""

    label: str
    colour: str
    marker: str  # empty: a thin line behind the others
    dashes: str


def draw_figures(folder: Path, finished: Finished, reference: str) -> list[Path]:
    """Write all figures of an experiment as PNG files; return their paths.

    Args:
        folder: of the files.
        finished: the experiment.
        reference: the arm that paired differences are taken from.
    """
    drawings = {
        "learning_curves": learning_curves(finished, reference),
        "time_vs_accuracy": _times(finished, reference),
    }
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


def learning_curves(finished: Finished, reference: str) -> Drawing:
    """Draw how a model gets better with labels: for every prior precision in ``updating``, else for the usual one."""
    absorbs = finished.configuration.experiment == UPDATING
    return _absorbing(finished, reference) if absorbs else _curves(finished, reference)


def _usual_prior(finished: Finished) -> tuple[float, list[Record]]:
    """Return the prior precision of figures with a single one, and its records."""
    priors = finished.configuration.prior_precisions
    prior = _USUAL_PRIOR if _USUAL_PRIOR in priors else priors[0]
    return prior, [record for record in finished.records if record.prior_precision == prior]


def _looks(names: Sequence[str], ranking: Ranking) -> dict[str, Look]:
    """Return the look of every arm, in the order of the legend.

    The best usable arms, random, base, refit and the reference are in colour, each with a marker of its own. All others
    are thin and grey, dotted where they use labels that are unknown in practice, and share a label.
    """
    best = [name for name in ranking.usable if name not in _ALWAYS][:_BEST]
    shown = {*best, *_ALWAYS, ranking.reference}
    bright = [name for name in names if name in shown]
    markers = dict(zip(bright, _MARKERS, strict=False))
    looks = {name: Look(describe(name), _colour(name), markers[name], _dashes(name)) for name in bright}
    for apart in (False, True):
        grey = [name for name in names if name not in shown and uses_unknown_labels(name) == apart]
        shared = "true labels, unknown in practice" if apart else "other strategies"
        label = describe(grey[0]) if len(grey) == 1 else shared
        looks |= {name: Look(label, "0.55" if apart else "0.72", "", ":" if apart else "-") for name in grey}
    return looks


def _colour(name: str) -> str:
    if name in _COLOURS:
        return _COLOURS[name]
    family = chooser(name)
    if family not in _COLOURS:
        family = family.removesuffix("_predicted").removesuffix("_true")
    red, green, blue = (part + _PALER * (1.0 - part) for part in mpl.colors.to_rgb(_COLOURS[family]))
    return mpl.colors.to_hex((red, green, blue))


def _dashes(name: str) -> str:
    if not is_refitted(name):
        return "-."
    return "--" if name.endswith("_predicted") else ":" if name.endswith("_true") else "-"


def _draw_line(
    axes: Axes,
    x: Sequence[int],  # [L]
    values: Values,  # [S, L]
    look: Look,
    *,
    band: bool = True,
) -> None:
    """Draw the mean over seeds and, for an arm in colour, one standard error to either side of it."""
    mean, error = mean_and_error(values)
    if not look.marker:
        axes.plot(x, mean, color=look.colour, linestyle=look.dashes, linewidth=_THIN, label=look.label, zorder=1.5)
        return
    if band:
        axes.fill_between(x, mean - error, mean + error, color=look.colour, alpha=_BAND_OPACITY, linewidth=0)
    axes.plot(
        x,
        mean,
        color=look.colour,
        marker=look.marker,
        markevery=math.ceil(len(x) / _MARKS),
        linestyle=look.dashes,
        label=look.label,
    )


def _limit(
    axes: Axes,
    curves: Sequence[Values],  # [S, L] each
) -> None:
    """Leave room for some curves and their bands, and cut off what lies farther away."""
    ends = [mean + side * error for mean, error in map(mean_and_error, curves) for side in (-1.0, 1.0)]
    low, high = float(np.min(ends)), float(np.max(ends))
    if high > low:
        margin = 0.06 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _curves(finished: Finished, reference: str) -> Drawing:
    """Accuracy over labels, and its paired difference from the reference."""
    configuration = finished.configuration
    prior, records = _usual_prior(finished)

    def draw(figure: FigureBase) -> None:
        left, right = figure.subplots(1, 2)
        looks = _looks(configuration.strategies, rank_arms(records, configuration, reference))
        curves = {name: by_seed(records, configuration.experiment, name, "accuracy") for name in looks}
        start = curves[reference][1]
        for name, look in looks.items():
            labels, values = curves[name]
            _draw_line(left, labels, 100.0 * values, look, band=False)
            _draw_line(right, labels, 100.0 * (values - start), look)
        bright = [name for name, look in looks.items() if look.marker]
        _limit(left, [100.0 * curves[name][1].mean(axis=0, keepdims=True) for name in bright])
        _limit(right, [100.0 * (curves[name][1] - start) for name in bright])
        left.set(xlabel="labels", ylabel="test accuracy [%]")
        right.set(xlabel="labels", ylabel=f"difference from {describe(reference)} [points]")
        _finish(figure, [left, right], configuration, f"prior precision {prior:g}")

    return Drawing(2 * _WIDTH, _HEIGHT + 1.4, draw)


def _absorbing(finished: Finished, reference: str) -> Drawing:
    """Paired differences in accuracy and in negative log-likelihood over new labels; a row for each prior precision."""
    configuration = finished.configuration
    priors, added = configuration.prior_precisions, configuration.new_labels or ()
    # Arms look the same in all panels.
    looks = _looks(configuration.strategies, rank_arms(_usual_prior(finished)[1], configuration, reference))

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots(len(priors), 2, squeeze=False)
        for panels, prior in zip(axes, priors, strict=True):
            records = [record for record in finished.records if record.prior_precision == prior]
            for panel, field, factor in zip(panels, ("accuracy", "nll"), (100.0, 1.0), strict=True):
                shape = configuration.seeds, len(added)  # the base has one column, for it has no new labels
                found = {
                    name: np.broadcast_to(factor * by_seed(records, UPDATING, name, field)[1], shape) for name in looks
                }
                differences = {name: values - found[reference] for name, values in found.items()}
                for name, look in looks.items():
                    _draw_line(panel, added, differences[name], look)
                _cut_off(panel, differences, 1.0 if field == "accuracy" else -1.0)
                panel.set_xscale("log")
                panel.set_xticks(added, labels=[f"+{count}" for count in added])
                panel.minorticks_off()
                panel.set_xlabel(f"new labels, after {configuration.initial_labels} at the start")
            named = describe(reference)
            panels[0].set(title=f"prior precision {prior:g}", ylabel=f"accuracy, difference from {named} [points]")
            panels[1].set(ylabel=f"NLL, difference from {named} [nats]")
        _finish(figure, list(axes.ravel()), configuration, "")

    return Drawing(2 * _WIDTH, _HEIGHT * len(priors) + 1.4, draw)


def _cut_off(
    axes: Axes,
    differences: Mapping[str, Values],  # [S, L] each
    sign: float,
) -> None:
    """Cut off rules that diverge, so that the others can be told apart; with ``sign`` -1 less is better."""
    if "base" not in differences:
        return
    means = {name: sign * mean_and_error(values)[0] for name, values in differences.items()}
    base, best = float(means["base"].min()), max(float(mean.max()) for mean in means.values())
    ends = [sign * (base - 1.5 * (best - base)), sign * (best + 0.3 * (best - base))]
    low, high = axes.get_ylim()
    if best > base:
        axes.set_ylim(max(low, min(ends)), min(high, max(ends)))


def _times(finished: Finished, reference: str) -> Drawing:
    """Time of an update, or of choosing and learning a batch, against accuracy; one point for each strategy."""
    configuration = finished.configuration
    experiment, added = configuration.experiment, configuration.new_labels
    prior, records = _usual_prior(finished)

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots()
        for name, look in _looks(configuration.strategies, rank_arms(records, configuration, reference)).items():
            times = [by_seed(records, experiment, name, field)[1] for field in ("choice_seconds", "learning_seconds")]
            taken = [seconds.mean(axis=1) if added is None else seconds[:, -1] for seconds in times if seconds.size]
            if not taken:
                continue  # the base
            reached = by_seed(records, experiment, name, "aulc" if added is None else "accuracy")[1][:, -1]
            x, dx = mean_and_error(1000.0 * np.sum(taken, axis=0))
            y, dy = mean_and_error(100.0 * reached)
            hollow = look.dashes == ":" and not look.marker
            axes.errorbar(
                float(x),
                float(y),
                float(dy),
                float(dx),
                color=look.colour,
                marker=look.marker or "o",
                markerfacecolor="white" if hollow else look.colour,
                markersize=6 if look.marker else 3.5,
                elinewidth=0.8 if look.marker else 0.5,
                linestyle="none",
                label=look.label,
                zorder=2.5 if look.marker else 1.5,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=20))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        what = "to choose a batch and to learn from it" if added is None else f"to absorb {max(added)} labels"
        axes.set_xlabel(f"time {what} [ms]")
        axes.set_ylabel("mean accuracy over the curve [%]" if added is None else "test accuracy [%]")
        note = "Points: mean of {}. Bars: one standard error."
        _finish(figure, [axes], configuration, f"prior precision {prior:g}", note)

    return Drawing(2 * _WIDTH, _HEIGHT + 1.6, draw)


def _finish(
    figure: FigureBase,
    axes: Sequence[Axes],
    configuration: Configuration,
    setting: str,
    note: str = "Lines: mean of {}. Bands: one standard error of the difference.",
) -> None:
    """Add one legend for all panels, the arms in colour first, and a line that says what is drawn."""
    handles: dict[str, Any] = {}
    for panel in axes:
        panel.yaxis.set_major_locator(MaxNLocator(_TICKS, steps=[1, 2, 5, 10]))
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    seeds = "1 seed" if configuration.seeds == 1 else f"{configuration.seeds} seeds"
    where = ", ".join(filter(None, (configuration.title, setting)))
    figure.suptitle(f"{where}\n{note.format(seeds)}", fontsize=7.5)
