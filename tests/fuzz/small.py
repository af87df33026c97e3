"""A small problem, and what a campaign must know about a public function."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from lapal_ext import LastLayerLaplace
from lapal_ext.likelihood import CURVATURES
from tests.draws import Draw
from tests.fuzz.changes import Argument, Choose

Arguments = dict[str, Argument]


class Small(NamedTuple):
    """A problem of a few rows, features and classes."""

    posterior: LastLayerLaplace
    x: Tensor  # [N, D]
    y: Tensor  # [N]
    points: Tensor  # [E, D]
    n_classes: int


class Function(NamedTuple):
    """A public function, called by keywords.

    Attributes:
        call: the function.
        arguments: accepted arguments for a problem.
        moves: the argument that changes when it succeeds.
        copies: whether it only returns numbers of the posterior, which may be NaN.
        draws: whether its result follows from random numbers, which differ between float32 and float64.
    """

    call: Callable[..., object]
    arguments: Callable[[Choose, Small], Arguments]
    moves: str = ""
    copies: bool = False
    draws: bool = False


def small(choose: Choose) -> Small:
    """A random problem, which may have one row, one feature and two classes."""
    draw = Draw(choose(st.integers(0, 2**32 - 1)))
    n_classes, n_features = choose(st.sampled_from([2, 2, 3, 5])), choose(st.sampled_from([1, 2, 4]))
    n_rows, n_points = choose(st.sampled_from([1, 2, 6])), choose(st.sampled_from([1, 3]))
    dtype = choose(st.sampled_from([torch.float32, torch.float64]))
    bias = draw.normal(n_classes).to(dtype) if choose(st.booleans()) else None
    model = LastLayerLaplace(
        draw.normal(n_classes, n_features).to(dtype), curvature=choose(st.sampled_from(CURVATURES)), bias=bias
    )
    model.fit(draw.normal(2 * n_features + 3, n_features).to(dtype))
    if choose(st.booleans()):  # its precision does not contain these rows yet
        model.update(draw.normal(2, n_features).to(dtype), draw.integers(n_classes, 2))
    x, y = draw.normal(n_rows, n_features).to(dtype), draw.integers(n_classes, n_rows)
    return Small(model, x, y, draw.normal(n_points, n_features).to(dtype), n_classes)
