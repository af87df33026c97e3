"""The properties of a strategy (``Spec``), and the inputs of its scorer (``Setting``)."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lapal_ext.acquisition.scorer import Scorer
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import EXACT_LINKS, Link, UpdateRule


class Setting(NamedTuple):
    """The inputs of a scorer, all of them checked."""

    posterior: LastLayerLaplace  # not modified
    pool: Pool
    rule: UpdateRule
    link: Link
    labelled: Tensor | None = None  # [L, D] raw features of the rows that have labels
    seed: int = 0


class Spec(NamedTuple):
    """One strategy.

    Attributes:
        make: makes the scorer of one selection.
        make_tiled: the same without the logits of the whole pool in memory; None if it needs them or never computes
            them.
        links: the links that it supports.
        drawing_links: the links with which its picks depend on the seed.
        uses_variance: whether its picks depend on the covariance with every link.
        uses_probabilities: whether they depend on probabilities, and so on the covariance if the link does.
        keeps_logits: whether it needs the logits of the whole pool in memory.
        needs_all_rows: whether it needs all rows in one process.
        scores_every_row: whether it has a utility for every single row, independent of earlier picks.
    """

    make: Callable[[Setting], Scorer]
    make_tiled: Callable[[Setting], Scorer] | None = None
    links: tuple[str, ...] = EXACT_LINKS
    drawing_links: tuple[str, ...] = ()
    uses_variance: bool = False
    uses_probabilities: bool = False
    keeps_logits: bool = False
    needs_all_rows: bool = False
    scores_every_row: bool = False
