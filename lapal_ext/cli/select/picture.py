"""A picture of the labelling so far: right suggestions, labels per class, and a map of the pool."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lapal_ext.atomic_file import replace_file
from lapal_ext.cli.select.answers import Line
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.display import safe
from lapal_ext.cli.select.start import Start
from lapal_ext.cli.select.summary import WINDOW, Summary
from lapal_ext.pool.checksum import spread
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAPPED = 5000  # rows of the pool in the map
_NAMED = 30  # classes whose bars have names
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
}


class PoolMap:
    """Rows of the pool in two dimensions: the principal components of what the model says about them.

    These are the logits, or the features themselves before there is a label. All processes make it.
    """

    def __init__(
        self, lines: Sequence[Line], start: Start, model: LastLayerLaplace, temperature: float, *, taught: bool
    ) -> None:
        from sklearn.decomposition import PCA

        self.labelled = sorted({line.row for line in lines if line.label is not None})
        self.waiting = sorted({line.row for line in lines if line.waits})
        self.rows = sorted({*spread(start.pool_rows, _MAPPED), *self.labelled, *self.waiting})
        features = start.features_of(self.rows)
        values = model.predict_logits(features) if taught else features
        self.uncertainty: Tensor | None = 1 - (values / temperature).softmax(1).amax(1) if taught else None  # [n]
        points = PCA(2, random_state=0).fit_transform(values.double().numpy()) if len(values) > 1 else None
        self.points = torch.zeros(len(values), 2, device="cpu") if points is None else torch.from_numpy(points)

    def points_of(self, rows: Sequence[int]) -> Tensor:  # [k, 2]
        """Coordinates of rows that are in the map."""
        places = {row: place for place, row in enumerate(self.rows)}
        return self.points[[places[row] for row in rows]]


def draw(path: Path, summary: Summary, classes: Classes, pool_map: PoolMap) -> None:
    """Write the picture; its suffix is the format."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        agreement, bars, scatter = figure.subplots(1, 3, width_ratios=(1, 1, 1.3))
        _draw_agreement(agreement, summary)
        _draw_bars(bars, summary, classes)
        _draw_map(scatter, pool_map, figure)
        suffix = path.suffix[1:].lower()
        replace_file(path, lambda scratch: figure.savefig(scratch, dpi=150, format=suffix))


def _draw_agreement(axes: "Axes", summary: Summary) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.set_title(f"suggestions that were right, of the last {WINDOW}")
    right = torch.tensor([one.right for one in summary.checked], dtype=torch.float64, device="cpu")
    sums = torch.cat([right.new_zeros(1), right.cumsum(0)])
    numbers = torch.arange(1, len(sums), device="cpu")
    starts = (numbers - WINDOW).clamp(min=0)
    shares = (sums[numbers] - sums[starts]) / (numbers - starts)
    axes.set_xlim(0, max(WINDOW, len(numbers)))
    axes.plot(numbers[WINDOW // 5 :], shares[WINDOW // 5 :], color="#0072B2")
    axes.set_xlabel("answers for rows with a suggestion")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if summary.accuracy is not None:
        value, low, high = summary.accuracy
        axes.axhspan(low, high, color="#009E73", alpha=0.15, linewidth=0)
        axes.axhline(value, color="#009E73", linewidth=1, label="expected accuracy on the other rows")
        axes.legend(frameon=False, loc="lower right")


def _draw_bars(axes: "Axes", summary: Summary, classes: Classes) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = Counter(summary.labels)
    order = sorted(range(len(classes)), key=lambda number: -counts[number])
    axes.set_title(f"labels per class, {len(summary.labels)} in all")
    axes.bar(range(len(order)), [counts[number] for number in order], color="#56B4E9")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(order) <= _NAMED:
        names = [safe(classes.names[number])[:24] for number in order]
        axes.set_xticks(range(len(order)), names, rotation=90 if len(order) > 4 else 0, parse_math=False)
    else:
        axes.set_xlabel(f"{len(order)} classes, most labels first")


def _draw_map(axes: "Axes", pool_map: PoolMap, figure: "Figure") -> None:
    axes.set_title("the pool")
    x, y = pool_map.points.T
    if pool_map.uncertainty is None:
        axes.scatter(x, y, s=4, color="0.7", linewidths=0)
    else:
        dots = axes.scatter(x, y, s=4, c=pool_map.uncertainty, cmap="viridis", linewidths=0, vmin=0, vmax=1)
        figure.colorbar(dots, ax=axes, label="uncertainty: 1 - highest probability")
    x, y = pool_map.points_of(pool_map.labelled).T
    axes.scatter(x, y, s=12, marker="x", color="black", linewidths=0.8, label="labelled")
    x, y = pool_map.points_of(pool_map.waiting).T
    axes.scatter(x, y, s=28, facecolors="none", edgecolors="#D55E00", linewidths=1.1, label="to label")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=2)
