"""The row with the largest gain, from upper bounds of the gains and as few evaluations as the bounds allow."""

from collections.abc import Callable

import torch
from torch import Tensor

_AT_ONCE = 32  # rows that are evaluated together
_SHORT_LIST = 8192  # rows among which the best is looked for; all others have a smaller bound
_ROUNDING = 64.0  # eps: a gain may exceed its bound by this factor, since the two are sums in different orders


class LazyGains:
    """Gains that never grow: a gain computed earlier is an upper bound ("lazy greedy").

    A row is evaluated only if its bound reaches the best gain found so far. So the result is the same as if all rows
    were evaluated. A bound of zero is exact, since gains are not negative.

    Source: Minoux (1978), "Accelerated greedy algorithms for maximizing submodular set functions".

    Args:
        bounds: upper bounds of the gains, float64 [n]; changed in place.
        dtype: in which gains are computed, which says how exact they are.
    """

    def __init__(self, bounds: Tensor, dtype: torch.dtype) -> None:
        self._bounds, self._dtype = bounds, dtype
        self._slack = 1.0 + _ROUNDING * torch.finfo(dtype).eps
        self._rows: Tensor | None = None  # the short list, ascending
        self._limit = -torch.inf  # no bound outside of the short list is larger

    def copy(self) -> "LazyGains":
        """Bounds that may be lowered without lowering these."""
        return LazyGains(self._bounds.clone(), self._dtype)

    def best(
        self,
        evaluate: Callable[[Tensor], Tensor],  # rows [k] -> gains float64 [k]
        taken: Tensor,  # [n] bool
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1] float64, or empty
        """The free row with the largest gain, ties to the lowest, and its gain; empty if no row is free."""
        exact = self._bounds == 0.0
        size = _SHORT_LIST
        while True:
            if self._rows is None:
                self._rows, self._limit = self._short_list(taken, size)
            row, gain = self._best_of(self._rows[~taken[self._rows]], evaluate, exact)
            if self._limit == -torch.inf or (len(row) > 0 and float(gain) > self._limit * self._slack):
                return row, gain
            self._rows, size = None, 2 * size  # the best row may be outside

    def _short_list(self, taken: Tensor, size: int) -> tuple[Tensor, float]:
        """The free rows with the largest bounds, and the largest bound of all others."""
        free = (~taken).nonzero()[:, 0]
        if len(free) <= size:
            return free, -torch.inf
        largest = self._bounds[free].topk(size + 1)
        return free[largest.indices[:-1]].sort().values, float(largest.values[-1])

    def _best_of(
        self,
        rows: Tensor,  # [m] int64, ascending
        evaluate: Callable[[Tensor], Tensor],
        exact: Tensor,  # [n] bool, changed in place
    ) -> tuple[Tensor, Tensor]:  # [1] int64, [1] float64, or empty
        if len(rows) == 0:
            return rows, self._bounds[rows]
        while True:
            bounds, known = self._bounds[rows], exact[rows]
            best = bounds.masked_fill(~known, -torch.inf).amax()
            highest = bounds.masked_fill(known, -torch.inf).topk(min(_AT_ONCE, len(rows)))
            places = highest.indices[highest.values * self._slack >= best]
            if len(places) == 0:
                place = (known & (bounds == best)).int().argmax()[None]
                return rows[place], bounds[place]
            self._bounds[rows[places]] = evaluate(rows[places])
            exact[rows[places]] = True
