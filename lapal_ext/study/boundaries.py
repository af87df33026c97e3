"""A figure of decision boundaries in the plane: before an update, after it, and after a refit."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from torch import Tensor

from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.study.feature_file import Labelled

_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_MARKERS = ("o", "s", "^")
_CLASSES = 3
_INITIAL, _NEW, _TEST = 12, 18, 3000  # rows
_WAVES, _WIDTH = 200, 1.2  # number of features, and their length scale
_GRID, _EDGE = 240, 3.2  # points along an edge, and half the length of the edge
_PRIOR_PRECISION = 1.0
_SEED = 1


def draw_boundaries(figure: FigureBase) -> None:
    """Draw a model of three spiral arms with few labels, the model after an update with more, and a refit on all."""
    generator = torch.Generator().manual_seed(_SEED)
    waves = torch.randn(2, _WAVES, generator=generator) / _WIDTH
    phases = 2.0 * math.pi * torch.rand(_WAVES, generator=generator)

    def features(points: Tensor) -> Tensor:  # [n, 2] -> [n, _WAVES]
        """Random Fourier features (Rahimi and Recht, 2007); they stand for an encoder."""
        return math.sqrt(2.0) * (points @ waves + phases).cos()

    initial, new, test = (_spiral(count, generator) for count in (_INITIAL, _NEW, _TEST))
    both = Labelled(*(torch.cat(parts) for parts in zip(initial, new, strict=True)))
    before = _fit(features(initial.features), initial.targets)
    after = before.condition_on(features(new.features), new.targets)
    refit = _fit(features(both.features), both.targets)
    line = torch.linspace(-_EDGE, _EDGE, _GRID)
    grid = features(torch.cartesian_prod(line, line))

    titles = f"before: {_INITIAL} labels", f"after an update with {_NEW} more", f"refit on all {_INITIAL + _NEW}"
    for axes, title, model in zip(figure.subplots(1, 3), titles, (before, after, refit), strict=True):
        _regions(axes, model.predict_proba(grid).reshape(_GRID, _GRID, _CLASSES).transpose(0, 1))
        _scatter(axes, initial, filled=True)
        if model is not before:
            _scatter(axes, new, filled=False)
        accuracy = (model.predict_logits(features(test.features)).argmax(1) == test.targets).double().mean()
        axes.set(title=f"{title}\n{100 * float(accuracy):.1f} % of {_TEST} test points", xticks=[], yticks=[])
        axes.set_aspect("equal")
    figure.supxlabel(
        "Toy data. Filled: first labels. Hollow: new labels. Colour: mean-field predictive, pale where it is unsure.",
        fontsize=7,
    )


def _spiral(count: int, generator: torch.Generator) -> Labelled:
    """Noisy points on the three arms of a spiral."""
    targets = torch.arange(count) % _CLASSES
    radius = 0.4 + 2.2 * torch.rand(count, generator=generator)
    angle = 2.0 * math.pi * targets / _CLASSES + 0.9 * radius
    noise = 0.22 * torch.randn(count, 2, generator=generator)
    return Labelled(radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) + noise, targets)


def _fit(features: Tensor, targets: Tensor) -> LastLayerLaplace:
    return LastLayerLaplace.fit_map(features, targets, _CLASSES, _PRIOR_PRECISION)


def _regions(axes: Axes, probabilities: Tensor) -> None:
    """Colour the plane by the probabilities, and draw the boundaries between the classes."""
    colours = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in _COLOURS])
    shares = probabilities.numpy().astype(np.float64)
    sureness = (shares.max(2) - 1.0 / _CLASSES) / (1.0 - 1.0 / _CLASSES)
    winner = shares.argmax(2)
    picture = 1.0 - 0.6 * sureness[:, :, None] * (1.0 - colours[winner])
    extent = (-_EDGE, _EDGE, -_EDGE, _EDGE)
    axes.imshow(picture, origin="lower", extent=extent, interpolation="bilinear")
    for k in range(_CLASSES):
        axes.contour((winner == k).astype(float), levels=[0.5], colors="0.25", linewidths=0.7, extent=extent)
    axes.grid(visible=False)


def _scatter(axes: Axes, points: Labelled, filled: bool) -> None:
    for k in range(_CLASSES):
        x, y = points.features[points.targets == k].T.numpy()
        face = _COLOURS[k] if filled else "white"
        edge = "black" if filled else _COLOURS[k]
        axes.scatter(x, y, s=20, marker=_MARKERS[k], facecolors=face, edgecolors=edge, linewidths=0.9, zorder=3)
