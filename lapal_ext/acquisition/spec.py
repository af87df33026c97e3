"""The properties of a strategy (``Spec``), and the inputs of its scorer (``Setting``)."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from lapal_ext.acquisition.scorer import Scorer
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import EXACT_LINKS, Link

KERNEL_MEMORY = 1 << 26  # where the caller sets no limit


class Setting(NamedTuple):
    """The inputs of a scorer, all of them checked."""

    posterior: LastLayerLaplace  # not modified
    pool: Pool
    link: Link
    labelled: Tensor | None = None  # [L, D] raw features of the rows that have labels
    seed: int = 0
    references: int | Tensor | None = None  # for a strategy that sums over references: their number, or int64 [E]
    uncertainty: str | Tensor | None = None  # for one that weighs by it: a utility, or [n] numbers of the rows here
    memory: float | None = None  # bytes for logits and variances of the pool; None: no limit
    kernel_memory: float = KERNEL_MEMORY  # bytes for kernel values


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
        batch_targets: the labels that a batch absorbs between its picks unless the caller says otherwise; None if the
            picks of a batch differ from each other without them.
        sums_over_references: whether it takes ``references``, and draws them if there are fewer than rows.
        weighs_by_uncertainty: whether it takes ``uncertainty``.
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
    batch_targets: str | None = "predicted"
    sums_over_references: bool = False
    weighs_by_uncertainty: bool = False
