"""The figures of an experiment: curves with bands, gain over random, time against accuracy, decision boundaries."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.boundaries import draw_boundaries
from lapal_ext.study.figures import RESOLUTION, STYLE, Line, draw_band
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import ACTIVE_STRATEGIES, describe

# Colour and marker by the beginning of a strategy's name; dashes say which labels it uses.
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
# Of markers, where there are no lines.
_FILLS: dict[str, Literal["full", "left", "none"]] = {"-": "full", "--": "left", ":": "none"}
_CONTEXT = ("random", "margin")  # in every panel
_USUAL_PRIOR = 10.0  # of figures that show a single one, where it was run
_WIDTH, _HEIGHT = 3.5, 3.2  # of a panel, inches


def draw_experiment(folder: Path, records: Sequence[Record], configuration: dict[str, Any]) -> list[Path]:
    """Write all figures of an experiment as PNGs; return their paths."""
    names, experiment = configuration["strategies"], configuration["experiment"]
    drawings: dict[str, Callable[[], Figure]] = {}
    priors = configuration["prior_precisions"]
    prior = _USUAL_PRIOR if _USUAL_PRIOR in priors else priors[0]
    of_prior = [record for record in records if record.prior_precision == prior]
    if experiment == UPDATING:
        drawings["learning_curves"] = lambda: _absorbing(records, configuration)
    else:
        drawings["learning_curves"] = lambda: _curves(of_prior, configuration, None)
        if "random" in names:
            drawings["gain_over_random"] = lambda: _curves(of_prior, configuration, "random")
    drawings["time_vs_accuracy"] = lambda: _time(of_prior, configuration)
    drawings["decision_boundaries"] = draw_boundaries
    paths = []
    for name, draw in drawings.items():
        with mpl.rc_context(STYLE):
            paths.append(_save(draw(), folder / f"{name}.png"))
    return paths


def _save(figure: Figure, path: Path) -> Path:
    replace_file(path, lambda scratch: figure.savefig(scratch, dpi=RESOLUTION, format="png"))
    return path


def _line(name: str) -> Line:
    known = name if name in _LOOKS else name.removesuffix("_predicted").removesuffix("_true")
    dashes = "--" if name.endswith("_predicted") else ":" if name.endswith("_true") else "-"
    return Line(describe(name), *_LOOKS[known], dashes)


def _curves(records: Sequence[Record], configuration: dict[str, Any], reference: str | None) -> Figure:
    """Accuracy over labels, or its paired difference from a strategy; a panel for each kind of strategy."""
    names, experiment = configuration["strategies"], configuration["experiment"]
    top_b = [name for name in ACTIVE_STRATEGIES if not name.endswith(("_predicted", "_true"))]
    panels = {
        "one batch at once": [name for name in names if name in top_b],
        "sequential": [name for name in names if name in ACTIVE_STRATEGIES and name not in top_b],
        "look-ahead": [name for name in names if name not in ACTIVE_STRATEGIES],
    }
    if not set(panels["one batch at once"]) - set(_CONTEXT) and any(list(panels.values())[1:]):
        panels["one batch at once"] = []
    shown = {title: members for title, members in panels.items() if members}
    figure = Figure(figsize=(_WIDTH * max(2, len(shown)), _HEIGHT + 1.4), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    start = None if reference is None else by_seed(records, experiment, reference, "accuracy")[1]
    for panel, (title, members) in zip(axes, shown.items(), strict=True):
        context = [name for name in names if name in _CONTEXT and name not in members]
        for name in (*context, *members):
            labels, values = by_seed(records, experiment, name, "accuracy")
            draw_band(panel, labels, 100.0 * (values if start is None else values - start), _line(name))
        panel.set(title=title, xlabel="labels")
    axes[0].set_ylabel("test accuracy [%]" if start is None else f"accuracy, difference from {reference} [points]")
    prior = records[0].prior_precision
    _finish(figure, axes, configuration, f"prior precision {prior:g}")
    return figure


def _absorbing(records: Sequence[Record], configuration: dict[str, Any]) -> Figure:
    """Accuracy and negative log-likelihood over new labels; a row for each prior precision."""
    priors, names, initial = (configuration[name] for name in ("prior_precisions", "strategies", "initial_labels"))
    figure = Figure(figsize=(2 * _WIDTH, _HEIGHT * len(priors) + 1.4), layout="constrained")
    axes = figure.subplots(len(priors), 2, squeeze=False)
    added = configuration["new_labels"]
    for (left, right), prior in zip(axes, priors, strict=True):
        of_prior = [record for record in records if record.prior_precision == prior]
        for panel, field, factor in ((left, "accuracy", 100.0), (right, "nll", 1.0)):
            for name in names:
                _, values = by_seed(of_prior, UPDATING, name, field)
                along = np.repeat(values, len(added), axis=1) if name == "base" else values
                draw_band(panel, added, factor * along, _line(name))
            panel.set_xscale("log")
            panel.set_xticks(added, labels=[f"+{count}" for count in added])
            panel.minorticks_off()
            panel.set_xlabel(f"new labels, beside the {initial} fitted")
        _limit(left, of_prior, names, "accuracy", 100.0)
        _limit(right, of_prior, names, "nll", -1.0)
        left.set(title=f"prior precision {prior:g}", ylabel="test accuracy [%]")
        right.set(title=f"prior precision {prior:g}", ylabel="negative log-likelihood [nats]")
    note = "Lines: mean of {}. Bands: one standard error. What leaves a panel is in the tables."
    _finish(figure, list(axes.ravel()), configuration, "", note)
    return figure


def _limit(axes: Axes, records: Sequence[Record], names: Sequence[str], field: str, factor: float) -> None:
    """Let a rule that diverges leave the picture, so that the others can be told apart; a negative factor turns it."""
    if "base" not in names:
        return
    means = {name: factor * mean_and_error(by_seed(records, UPDATING, name, field)[1])[0] for name in names}
    base, best = float(means["base"][0]), max(float(mean.max()) for mean in means.values())
    ends = [abs(base - 1.5 * (best - base)), abs(best + 0.3 * (best - base))]
    low, high = axes.get_ylim()
    if best > base:
        axes.set_ylim(max(low, min(ends)), min(high, max(ends)))


def _time(records: Sequence[Record], configuration: dict[str, Any]) -> Figure:
    """Time of an update or a choice against what it brings, a point for each strategy."""
    names, experiment = configuration["strategies"], configuration["experiment"]
    updates = experiment == UPDATING
    figure = Figure(figsize=(2 * _WIDTH, _HEIGHT + 1.6), layout="constrained")
    axes = figure.subplots()
    for name in names:
        if name == "base":
            continue
        seconds = _last(records, experiment, name, "seconds") if updates else _mean(records, experiment, name)
        reached = _last(records, experiment, name, "accuracy" if updates else "aulc")
        (x, dx), (y, dy) = mean_and_error(1000.0 * seconds), mean_and_error(100.0 * reached)
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
    most = max(configuration["new_labels"] or (0,))
    axes.set_xlabel(f"time to absorb {most} labels [ms]" if updates else "time to choose a batch [ms]")
    axes.set_ylabel("test accuracy [%]" if updates else "mean accuracy over the curve [%]")
    prior = records[0].prior_precision
    _finish(
        figure, [axes], configuration, f"prior precision {prior:g}", "Points: mean of {}. Bars: one standard error."
    )
    return figure


def _last(records: Sequence[Record], experiment: str, name: str, field: str) -> Values:  # [S]
    return by_seed(records, experiment, name, field)[1][:, -1]


def _mean(records: Sequence[Record], experiment: str, name: str) -> Values:  # [S]
    return np.asarray(by_seed(records, experiment, name, "seconds")[1].mean(axis=1))


def _finish(
    figure: Figure,
    axes: Sequence[Axes],
    configuration: dict[str, Any],
    setting: str,
    note: str = "Lines: mean of {}. Bands: one standard error to either side.",
) -> None:
    """Add the one legend of all panels, and say what the lines are."""
    handles: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
    count = configuration["seeds"]
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    where = ", ".join(filter(None, (configuration["data"], setting)))
    figure.suptitle(f"{where}. {note.format(seeds)}", fontsize=7.5)
