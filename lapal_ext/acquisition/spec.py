"""What a strategy tells the rest of the package about itself, and what its scorer is made from."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lapal_ext.acquisition.scorer import Scorer
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import EXACT_LINKS, Link, UpdateRule


class Setting(NamedTuple):
    """What a scorer starts from; all of it has been checked."""

    posterior: LastLayerLaplace  # stays as it is
    pool: Pool
    rule: UpdateRule
    link: Link
    labelled: Tensor | None = None  # [L, D] raw features of the rows that have labels
    seed: int = 0


class Spec(NamedTuple):
    """One strategy.

    Attributes:
        make: starts the state of one selection.
        make_tiled: the same without the logits of the whole pool in memory; None where they are needed or never made.
        links: those it may be used with.
        drawing_links: those with which its picks depend on the seed.
        uses_variance: whether its picks depend on the covariance whatever the link.
        uses_probabilities: whether they depend on probabilities, and so on the covariance where the link does.
        keeps_logits: whether it cannot do without the logits of the whole pool.
        needs_all_rows: whether it needs all rows in one process.
        scores_every_row: whether its utilities are of rows one by one, rather than of picks beside earlier picks.
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
