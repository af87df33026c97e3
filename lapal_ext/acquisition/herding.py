"""Rows that cover the other rows best, and most of all the rows that the model is uncertain about."""

import math
from functools import partial

import torch
from torch import Tensor

from lapal_ext.acquisition.distances import labelled_features
from lapal_ext.acquisition.kernel_rows import KernelRows
from lapal_ext.acquisition.lazy_gains import LazyGains
from lapal_ext.acquisition.posterior_scorer import PosteriorScorer
from lapal_ext.acquisition.references import directions, is_every_row, reference_rows
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.acquisition.uncertainty import tile_utilities
from lapal_ext.rules import UpdateRule
from lapal_ext.tiles import row_tiles
from lapal_ext.validation.tensors import check_overflow

_FEW_LABELS = 100  # with more the bandwidth shrinks
_SAMPLE = 1000  # references that give the bandwidth if there are no labels
_COPIES = 64.0  # eps: a smaller squared distance between directions is rounding


class HerdingScorer(PosteriorScorer):
    """Herding: every pick is the row that makes the labelled rows and the picks cover the references best.

    The utility of row j is its gain in coverage,
        sum_e u_e max(0, k(e, j) - m_e),  m_e = max over labelled rows and picks s of k(e, s),
    with k(x, r) = exp(-|x - r|^2 / h^2) on standardised features that are scaled to length one. ``uherding`` weighs
    reference e by its uncertainty u_e, the margin utility by default; ``maxherding`` has u = 1 and needs no model. A
    gain never grows as picks are added, so a gain computed earlier is an upper bound, and few gains are computed anew.

    h^2 is the median over the L labelled rows of the squared distance to the nearest other labelled row, times
    min(1, sqrt(100 / L)): with many labels a pick answers for fewer rows, and its own uncertainty counts more. Copies
    of a row do not count as others. With fewer than two distinct labelled rows it is that of 1,000 references. It stays
    the same during a selection. Rows absorbed in this selection count as labelled, and the uncertainty is that of the
    model that has absorbed them.

    O(N E D) for N rows and E references at the first pick and O(E D) for each row whose gain is computed anew, which
    are few. After a label has changed the uncertainty all gains are: O(N E) if the kernel values are in memory, else
    O(N E D).

    Source: Bae et al. (2025), "Uncertainty Herding: One Active Learning Method for All Label Budgets", arXiv
    2412.20644; MaxHerding is Bae et al. (2024), arXiv 2407.12212. Their bandwidth is the smallest distance between
    labelled rows, which was behind the median in our experiments; the median alone was behind margin with many labels.
    """

    def __init__(self, setting: Setting, *, default: str | None) -> None:
        super().__init__(setting)
        pool = self._pool
        rows = reference_rows(setting)
        self._features = pool.standardized_rows(rows)  # [E, D] or [E, D + 1]
        units, known = self._directions(self._features), self._directions(labelled_features(setting))
        bandwidth = _squared_bandwidth(known, units)
        self._kernel = KernelRows(
            self._directions_here,
            len(pool),
            units,
            bandwidth,
            setting.kernel_memory,
            are_rows=pool.shard.is_whole and is_every_row(rows, pool),
        )
        self._covered_at_start = self._kernel.largest(known)
        self._covered = self._covered_at_start
        given = setting.uncertainty
        self._uncertainty = default if given is None else given if isinstance(given, str) else None
        self._may_overflow = "uncertainty" if isinstance(given, Tensor) else "pool"  # the argument, for errors
        self._weight = torch.ones_like(self._covered)
        if isinstance(given, Tensor):
            self._weight = pool.values_of_rows(given, rows).to(self._weight.dtype)
        self._gains: LazyGains | None = None

    def restart(self) -> None:
        """See ``Scorer``."""
        super().restart()
        self._covered = self._covered_at_start
        self._gains = None

    def release(self, picks: Tensor) -> None:
        """See ``Scorer``."""
        super().release(picks)
        if self._gains is not None:  # its short list may be without rows that were taken when it was made
            self._gains = self._gains.copy()

    def absorb(self, picks: Tensor, labels: Tensor, rule: UpdateRule) -> None:
        """See ``Scorer``."""
        super().absorb(picks, labels, rule)
        self._covered = torch.maximum(self._covered, self._coverage_by(picks))
        if self._uncertainty is not None:
            self._gains = None  # where the uncertainty has grown, earlier gains are no upper bounds

    def pick(self, count: int) -> tuple[Tensor, Tensor]:
        """See ``Scorer``."""
        if self._gains is None:
            self._weigh()
            gains = self._kernel.all_gains(self._weight, self._covered)
            check_overflow(self._may_overflow, gains)
            self._gains = LazyGains(gains, self._kernel.rounding)
        lazy, covered = self._gains, self._covered
        picks: list[Tensor] = []
        utilities: list[Tensor] = []
        for number in range(count):
            if number > 0:
                # Picks may be released, so that gains lowered by them are no bounds for the next call.
                lazy = lazy.copy() if number == 1 else lazy
                covered = torch.maximum(covered, self._coverage_by(picks[-1]))
            evaluate = partial(self._kernel.gains, weight=self._weight, covered=covered)
            rows, gains = lazy.best(evaluate, self._taken)
            pick, utility = self._pool.shard.lowest_of_best(rows, gains, self._taken, lazy.tie)
            picks.append(pick)
            utilities.append(utility)
        return torch.cat(picks), torch.cat(utilities).to(self._weight.dtype)

    def _weigh(self) -> None:
        if self._uncertainty is None:
            return
        for rows in row_tiles(len(self._features)):
            self._weight[rows] = tile_utilities(
                self._posterior, self._features[rows], self._uncertainty, self._link, rows.start
            )

    def _coverage_by(self, picks: Tensor) -> Tensor:  # [E]
        if len(picks) == 1 and self._pool.shard.is_whole:
            return self._kernel.of_row(picks)
        return self._kernel.largest(self._directions(self._pool.standardized(picks)))

    def _directions_here(self, rows: Tensor) -> Tensor:  # [k, D + 1]
        return self._directions(self._pool.standardized_here(rows))

    def _directions(self, standardized: Tensor) -> Tensor:
        return directions(standardized, self._posterior.num_features)


def _squared_bandwidth(
    known: Tensor,  # [L, D + 1]
    references: Tensor,  # [E, D + 1]
) -> float:
    """h^2 from the labelled rows, or from the references where those have no neighbours."""
    of_labelled = _median_distance(known)
    if of_labelled is not None:
        return of_labelled * min(1.0, math.sqrt(_FEW_LABELS / len(known)))
    return _median_distance(references[:: -(-len(references) // _SAMPLE)]) or 1.0


def _median_distance(
    points: Tensor,  # [L, D + 1], of length one
) -> float | None:
    """Median over the points of the squared distance to the nearest other; None if all of them are copies."""
    nearest = points.new_full((len(points),), torch.inf)
    for rows in row_tiles(len(points), 1024):
        squares = 2.0 - 2.0 * (points[rows] @ points.T)
        squares[squares <= _COPIES * torch.finfo(points.dtype).eps] = torch.inf  # copies, and the point itself
        nearest[rows] = squares.amin(1)
    nearest = nearest[nearest.isfinite()]
    return float(nearest.median()) if len(nearest) > 0 else None


UHERDING_SPEC = Spec(
    partial(HerdingScorer, default="margin"),
    uses_probabilities=True,
    sums_over_references=True,
    weighs_by_uncertainty=True,
    batch_targets=None,
)
MAXHERDING_SPEC = Spec(partial(HerdingScorer, default=None), sums_over_references=True, batch_targets=None)
