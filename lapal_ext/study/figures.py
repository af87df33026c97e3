"""The demo as one picture: learning curves, what they gain over top-b, and how rules absorb labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.protocols import ACTIVE_LEARNING, UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error

RESOLUTION = 200  # dots per inch
_BAND_OPACITY = 0.18
STYLE: dict[Any, Any] = {
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


class Line(NamedTuple):
    """How a strategy is drawn."""

    label: str
    colour: str  # of the Okabe-Ito palette, which the colour-blind can tell apart; markers differ as well
    marker: str
    dashes: str = "-"


_ACTIVE = {
    "look_ahead_true": Line("look-ahead, true labels (upper bound)", "#000000", "D", "--"),
    "margin_true": Line("sequential, true labels (label before next pick)", "#009E73", "^", "-."),
    "margin_predicted": Line("sequential, predicted labels", "#0072B2", "o"),
    "margin": Line("margin, top-b", "#D55E00", "s"),
    "random": Line("random", "#7F7F7F", "x"),
}
_UPDATING = {
    "refit": Line("refit on all labels", "#000000", "D", "--"),
    "line_search": Line("ours: categorical, line search, $\\gamma$ = 1", "#0072B2", "o"),
    "official_10": Line("paper: gaussian, newton, $\\gamma$ = 10", "#D55E00", "s"),
    "base": Line("base: new labels unused", "#7F7F7F", ""),
}


def draw_learning_curves(path: Path, records: Sequence[Record]) -> None:
    """Write a PNG of four panels; lines are means over seeds, bands one standard error to either side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.4), layout="constrained")
        (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False)
        curves, gains = upper.subplots(1, 2)
        _learning_curves(curves, records)
        _gains(gains, records)
        curves.set(title="(a) Active learning on digits", xlabel="labels", ylabel="test accuracy [%]")
        gains.set(title="(b) Paired difference from margin, top-b", xlabel="labels", ylabel="test accuracy [points]")
        upper.legend(*curves.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        accuracy, likelihood = lower.subplots(1, 2)
        _absorbing(accuracy, records, "accuracy", 100.0)
        _absorbing(likelihood, records, "log_likelihood", 1.0)
        (initial,), _ = by_seed(records, UPDATING, "base", "accuracy")
        xlabel = f"new labels, beside the {initial} fitted"
        accuracy.set(title="(c) Absorbing labels, accuracy", xlabel=xlabel, ylabel="test accuracy [%]")
        likelihood.set(
            title="(d) Absorbing labels, log-likelihood", xlabel=xlabel, ylabel="test log-likelihood [nats per row]"
        )
        lower.legend(*accuracy.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        seeds = len({record.seed for record in records})
        figure.supxlabel(f"Lines: mean of {seeds} seeds. Bands: one standard error to either side.", fontsize=7)
        replace_file(path, lambda scratch: figure.savefig(scratch, dpi=RESOLUTION, format="png"))


def _learning_curves(axes: Axes, records: Sequence[Record]) -> None:
    for name, line in _ACTIVE.items():
        labels, values = by_seed(records, ACTIVE_LEARNING, name, "accuracy")
        draw_band(axes, labels, 100.0 * values, line)


def _gains(axes: Axes, records: Sequence[Record]) -> None:
    labels, baseline = by_seed(records, ACTIVE_LEARNING, "margin", "accuracy")
    for name, line in _ACTIVE.items():
        _, values = by_seed(records, ACTIVE_LEARNING, name, "accuracy")
        draw_band(axes, labels, 100.0 * (values - baseline), line)


def _absorbing(axes: Axes, records: Sequence[Record], field: str, factor: float) -> None:
    ticks: list[int] = []
    (initial,), base = by_seed(records, UPDATING, "base", field)
    for name, line in _UPDATING.items():
        if name != "base":
            labels, values = by_seed(records, UPDATING, name, field)
            ticks = [count - initial for count in labels]
            draw_band(axes, ticks, factor * values, line)
    draw_band(axes, ticks, factor * np.repeat(base, len(ticks), axis=1), _UPDATING["base"])
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels=[f"+{count}" for count in ticks])
    axes.minorticks_off()


def draw_band(
    axes: Axes,
    x: Sequence[int],  # [L]
    values: Values,  # [S, L]
    line: Line,
) -> None:
    """Draw the mean over seeds, and one standard error to either side of it."""
    mean, error = mean_and_error(values)
    axes.fill_between(x, mean - error, mean + error, color=line.colour, alpha=_BAND_OPACITY, linewidth=0)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.plot(x, mean, color=line.colour, marker=line.marker, linestyle=line.dashes, label=line.label)
