"""The rows with the largest gain, from upper bounds of the gains and as few evaluations as the bounds allow."""

from collections.abc import Callable

import torch
from torch import Tensor

_AT_ONCE = 14  # rows that are evaluated first, a tile of the kernels; then twice as many, and so on
_MOST_AT_ONCE = 1024
_SHORT_LIST = 8192  # rows among which the best is looked for; all others have a smaller bound


class LazyGains:
    """Gains that never grow: a gain computed earlier is an upper bound ("lazy greedy").

    A row is evaluated only if its bound reaches the best gain found so far. So the result is the same as if all rows
    were evaluated. A bound of zero is exact, since gains are not negative.

    Source: Minoux (1978), "Accelerated greedy algorithms for maximizing submodular set functions".

    Args:
        bounds: upper bounds of the gains, float64 [n]; changed in place.
        rounding: relative error of a gain. Gains that differ by less are equal.
    """

    def __init__(self, bounds: Tensor, rounding: float) -> None:
        self._bounds, self._rounding = bounds, rounding
        self._rows: Tensor | None = None  # the short list, ascending
        self._limit = -torch.inf  # no bound outside of the short list is larger

    @property
    def tie(self) -> float:
        """Gains of at least this share of the largest tie with it. Pairs of rows that only cover each other do so."""
        return 1.0 - self._rounding

    def copy(self) -> "LazyGains":
        """Bounds that may be lowered without lowering these."""
        return LazyGains(self._bounds.clone(), self._rounding)

    def best(
        self,
        evaluate: Callable[[Tensor], Tensor],  # rows [k] -> gains float64 [k]
        taken: Tensor,  # [n] bool
    ) -> tuple[Tensor, Tensor]:  # [m] int64, [m] float64
        """The free rows whose gains tie with the largest, ascending, and their gains; none if no row is free."""
        exact = self._bounds == 0.0
        size = _SHORT_LIST
        while True:
            if self._rows is None:
                self._rows, self._limit = self._short_list(taken, size)
            rows, gains = self._best_of(self._rows[~taken[self._rows]], evaluate, exact)
            if self._limit == -torch.inf or (len(rows) > 0 and float(gains.amax()) * self._reach > self._limit):
                return rows, gains
            self._rows, size = None, 2 * size  # a row that is as good may be outside

    @property
    def _reach(self) -> float:
        """A bound of at least this share of the best gain may belong to a row that ties with it."""
        return self.tie * self.tie

    def _short_list(self, taken: Tensor, size: int) -> tuple[Tensor, float]:
        """The free rows with the largest bounds, and the largest bound of all others."""
        free = (~taken).nonzero()[:, 0]
        if len(free) <= size:
            return free, -torch.inf
        largest = self._bounds[free].topk(size + 1)
        return free[largest.indices[:-1]].sort().values, float(largest.values[-1])

    def _best_of(
        self,
        rows: Tensor,  # [k] int64, ascending
        evaluate: Callable[[Tensor], Tensor],
        exact: Tensor,  # [n] bool, changed in place
    ) -> tuple[Tensor, Tensor]:  # [m] int64, [m] float64
        if len(rows) == 0:
            return rows, self._bounds[rows]
        count = _AT_ONCE
        while True:
            bounds, known = self._bounds[rows], exact[rows]
            best = bounds.masked_fill(~known, -torch.inf).amax()
            highest = bounds.masked_fill(known, -torch.inf).topk(min(count, len(rows)))
            places = highest.indices[highest.values >= best * self._reach]
            if len(places) == 0:
                tied = known & (bounds >= best * self.tie)
                return rows[tied], bounds[tied]
            self._bounds[rows[places]] = evaluate(rows[places])
            exact[rows[places]] = True
            count = min(2 * count, _MOST_AT_ONCE)
