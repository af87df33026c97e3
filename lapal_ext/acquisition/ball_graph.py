"""The graph of rows within a radius of each other: kept, or computed again in tiles when it is asked for."""

import torch
from torch import Tensor

from lapal_ext.acquisition.close_rows import CloseRows, Pairs
from lapal_ext.pool.pool import Pool


class BallGraph:
    """Which rows of a pool are closer to a row than the radius. A row is in its own ball.

    Args:
        pool: the rows.
        close: finds pairs of rows.
        squared_radius: the square of the radius.
        pairs: all pairs of rows (i, j), i <= j, within the radius, and maybe others; None to compute them again.
    """

    def __init__(self, pool: Pool, close: CloseRows, squared_radius: float, pairs: list[Pairs] | None) -> None:
        self._pool, self._close, self._squared = pool, close, squared_radius
        self._ends: Tensor | None = None
        if pairs is not None:
            self._ends, self._neighbours = self._lists(pairs)

    def degrees(self) -> Tensor:  # [N] int64
        """Number of rows in every ball."""
        if self._ends is not None:
            return self._ends.diff(prepend=self._ends.new_zeros(1))
        degrees = self._zeros()
        for pairs in self._close.in_pool(self._squared):
            degrees += self._count(pairs.first)
            degrees += self._count(pairs.second[pairs.first != pairs.second])
        return degrees

    def counts(
        self,
        rows: Tensor,  # [m] int64
    ) -> Tensor:  # [N] int64
        """Number of the given rows in every ball."""
        if self._ends is not None:
            lengths = self.degrees()[rows]
            firsts = (self._ends[rows] - lengths.cumsum(0)).repeat_interleave(lengths)
            return self._count(self._neighbours[firsts + torch.arange(len(firsts), device=rows.device)])
        counts = self._zeros()
        for pairs in self._close.to_points(self._pool.standardized(rows), self._squared):
            counts += self._count(pairs.first)
        return counts

    def near(
        self,
        points: Tensor,  # [m, D], standardised
    ) -> Tensor:  # [N] bool
        """Whether one of the points is in the ball."""
        near = self._zeros() > 0
        for pairs in self._close.to_points(points, self._squared):
            near[pairs.first] = True
        return near

    def _lists(self, pairs: list[Pairs]) -> tuple[Tensor, Tensor]:  # [N] int64, [2 k] int64
        """The end of every row's list of neighbours, and the lists one after the other."""
        first, second, _ = self._close.closer(pairs, self._squared)
        others = first != second
        rows = torch.cat([first, second[others]])
        neighbours = torch.cat([second, first[others]])[rows.argsort()]
        return self._count(rows).cumsum(0), neighbours

    def _zeros(self) -> Tensor:  # [N] int64
        return torch.zeros(len(self._pool), dtype=torch.int64, device=self._pool.storage.device)

    def _count(
        self,
        rows: Tensor,  # [k] int64
    ) -> Tensor:  # [N] int64
        return rows.bincount(minlength=len(self._pool))
