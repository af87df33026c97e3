"""Pairs of rows of a pool that are closer than a radius: products in float32, decisions as of float64."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.distances import TILE, squared_distances
from lapal_ext.pool.pool import Pool
from lapal_ext.tiles import row_tiles

_GROUP = 8192  # rows that are prepared at a time: 25 MiB at D = 384
_BLOCK = 512  # rows on each side of a product, so that its result stays in the second-level cache
_MANY = 64  # above one in so many pairs a product in float64 costs less than a sum for every pair
_RUN = 64  # numbers of a product that are compared with the threshold by their largest
_FULL_RUNS = 4 * _RUN  # if one in four runs has a number above the threshold, all numbers are compared
_UNIT = 2.0**-24  # largest relative error of one operation in float32
_SMALLEST = 2.0**-125  # more than the error of one operation whose result is almost zero


class Points(NamedTuple):
    """Points prepared for products."""

    standardized: Tensor  # [n, D]
    extended: Tensor  # [n, D + 2] float32: the centred and scaled point x, 1, and -|x|^2 / 2
    norms: Tensor  # [n] float64, of the centred points

    def part(self, rows: slice) -> "Points":
        """Some of the points."""
        return Points(*(values[rows] for values in self))


class Pairs(NamedTuple):
    """Pairs of points, by their numbers."""

    first: Tensor  # [k] int64
    second: Tensor  # [k] int64
    squares: Tensor  # [k] float64 squared distances, within ``CloseRows.error``

    def where(self, chosen: Tensor) -> "Pairs":
        """Some of the pairs."""
        return Pairs(*(values[chosen] for values in self))


class CloseRows:
    """Finds pairs of points whose distance is below a radius.

    The product of two extended points is -|x - y|^2 / 2, with an error that ``error`` bounds. A pair whose squared
    distance is within this error of the radius is decided by the sum of the squared differences in float64. In a tile
    with many such pairs a product in float64 decides. So the pairs are those of float64 distances.

    In memory are one group of prepared rows, one tile of products, and the prepared rows of the pool if ``memory``
    allows it.

    Args:
        pool: the rows.
        others: other points that will be compared with them, standardised, [L, D].
        memory: bytes for the prepared rows of the pool.
    """

    def __init__(self, pool: Pool, others: Tensor, memory: float) -> None:
        self._pool, self._centre = pool, pool.standardized_mean()
        norms = torch.cat([pool.norms(), others.norm(dim=1)])
        largest = float(norms.amax()) + float(self._centre.norm()) if len(norms) > 0 else 0.0
        self._scale = 2.0 ** max(-126, math.floor(math.log2(largest)) - 1) if largest > 0.0 else 1.0
        self._factor = -2.0 * self._scale**2  # from products to squared distances
        self._terms = self._centre.shape[1] + 8  # of a sum, and the roundings before and after it
        bytes_of_row = (self._centre.shape[1] + 8) * (norms.element_size() + 4)  # standardised, extended, and norms
        self._groups: list[tuple[slice, Points]] | None = None
        if len(pool) * bytes_of_row <= memory:
            self._groups = list(self._prepared())
        self._norms = torch.cat([norms.new_empty(0).double(), *(group.norms for _, group in self._prepared())])

    def _prepare(
        self,
        standardized: Tensor,  # [n, D]
    ) -> Points:
        """Prepare points for products."""
        n, d = standardized.shape
        extended = torch.empty(n, d + 2, dtype=torch.float32, device=standardized.device)
        x = extended[:, :d].copy_((standardized - self._centre.to(standardized.dtype)).div_(self._scale))
        squares = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square()
        extended[:, d] = 1.0
        extended[:, d + 1] = -0.5 * squares
        return Points(standardized, extended, squares.sqrt() * self._scale)

    def error(
        self,
        first: Tensor,  # [k] int64
        second: Tensor,  # [k] int64
    ) -> Tensor:  # [k] float64
        """Bound of the error of squared distances between rows of the pool."""
        return self._error(self._norms[first], self._norms[second])

    def _error(
        self,
        norms: Tensor,  # [...] float64
        others: Tensor,  # [...] float64
    ) -> Tensor:  # [...] float64
        """Bound of the error of squared distances between points with these norms, for any order of the sums.

        The sum has D + 2 products, each with one rounding, and the points have been rounded after centring.
        """
        return self._terms * (_UNIT * (norms + others).square() + _SMALLEST * self._scale**2)

    def in_pool(self, squared: float) -> Iterator[Pairs]:
        """Yield all pairs of rows (i, j), i <= j, with a squared distance below ``squared``, in tiles. O(N^2 D)."""
        for rows, group in self._prepared():
            for columns, block in self._blocks(rows.start):
                for tile in row_tiles(len(group.norms), _BLOCK):
                    first = rows.start + tile.start
                    if first >= columns.stop:
                        continue
                    pairs = self._closer(group.part(tile), block, squared)
                    pairs = Pairs(pairs.first + first, pairs.second + columns.start, pairs.squares)
                    yield pairs if first + _BLOCK <= columns.start else pairs.where(pairs.first <= pairs.second)

    def to_points(
        self,
        points: Tensor,  # [m, D], standardised
        squared: float,
    ) -> Iterator[Pairs]:
        """Yield all pairs of a row and a point with a squared distance below ``squared``, in tiles. O(N m D)."""
        for rows, group in self._prepared():
            for columns in row_tiles(len(points), _BLOCK):
                pairs = self._closer(self._prepare(points[columns]), group, squared)
                yield Pairs(pairs.second + rows.start, pairs.first + columns.start, pairs.squares)

    def closer(
        self,
        pairs: list[Pairs],  # of rows of the pool
        squared: float,
    ) -> Pairs:
        """Those of the pairs whose squared distance is below ``squared``."""
        nothing = self._norms.new_empty(0)
        empty = Pairs(nothing.long(), nothing.long(), nothing)
        first, second, squares = (torch.cat(values) for values in zip(empty, *pairs, strict=True))
        unsure = (squares - squared).abs() <= self.error(first, second)
        squares[unsure] = self.exact(first[unsure], second[unsure])
        return Pairs(first, second, squares).where(squares < squared)

    def near_another_label(
        self,
        labels: Tensor,  # [N] int64
        sample: Tensor,  # [m] int64
        count: int,
    ) -> Tensor:  # [N] float64
        """Upper bounds of the squared distance of every row to the nearest row that has another label. O(N m D).

        They are distances to sampled rows, all of which are prepared in memory. The ``count`` least bounds, and those
        equal to the next one, are exact distances; the others are larger by their error.
        """
        everything = torch.arange(len(self._pool), device=labels.device)
        bounds = torch.full_like(self._norms, torch.inf)
        points = [(part, self._prepare(self._pool.standardized_here(part))) for part in sample.split(_BLOCK)]
        for rows, group in self._prepared():
            for part, block in points:
                products = self._products(group, block).masked_fill_(labels[rows, None] == labels[part], -torch.inf)
                squares = self._factor * products.amax(1).double() + self._error(group.norms, block.norms.amax())
                bounds[rows] = torch.minimum(bounds[rows], squares)
        for rows in everything[bounds <= bounds.sort().values[count]].split(_GROUP):
            group = self._prepare(self._pool.standardized_here(rows))
            exact = bounds[rows]
            for part, block in points:
                products = self._products(group, block).masked_fill_(labels[rows, None] == labels[part], -torch.inf)
                largest = products.max(1)
                squares = self.exact(rows, part[largest.indices])
                exact = torch.where(largest.values > -torch.inf, torch.minimum(exact, squares), exact)
            bounds[rows] = exact
        return bounds

    def exact(
        self,
        first: Tensor,  # [k] int64
        second: Tensor,  # [k] int64
    ) -> Tensor:  # [k] float64
        """Squared distances between rows of the pool."""
        return self._exact(self._pool.standardized_here, first, self._pool.standardized_here, second)

    def _exact(
        self,
        points: Callable[[Tensor], Tensor],  # the points with these numbers
        first: Tensor,  # [k] int64
        others: Callable[[Tensor], Tensor],
        second: Tensor,  # [k] int64
    ) -> Tensor:  # [k] float64
        squares = torch.empty(len(first), dtype=torch.float64, device=first.device)
        for part in row_tiles(len(first), TILE // self._terms):
            squares[part] = (points(first[part]).double() - others(second[part]).double()).square_().sum(1)
        return squares

    def _prepared(self) -> Iterator[tuple[slice, Points]]:
        if self._groups is not None:
            yield from self._groups
            return
        for rows in row_tiles(len(self._pool), _GROUP):
            yield rows, self._prepare(self._pool.standardized_here(rows))

    def _blocks(self, start: int) -> Iterator[tuple[slice, Points]]:
        """Blocks of rows from ``start`` on."""
        for rows, group in self._prepared():
            for block in row_tiles(len(group.norms), _BLOCK):
                numbers = slice(rows.start + block.start, rows.start + block.stop)
                if numbers.stop > start:
                    yield numbers, group.part(block)

    def _closer(self, left: Points, right: Points, squared: float) -> Pairs:
        products = self._products(left, right)
        band = float(self._error(left.norms.amax(), right.norms.amax()))
        i, j = _above(products, (squared + band) / self._factor)
        squares = self._factor * products[i, j].double()
        unsure = ((squares - squared).abs() <= band).nonzero()[:, 0]
        if len(unsure) * _MANY > products.numel():
            squares = squared_distances(left.standardized - self._centre, right.standardized - self._centre)[i, j]
        elif len(unsure) > 0:
            squares[unsure] = self._exact(
                left.standardized.__getitem__, i[unsure], right.standardized.__getitem__, j[unsure]
            )
        return Pairs(i, j, squares).where(squares < squared)

    def _products(self, left: Points, right: Points) -> Tensor:  # [n, m]
        """-|x - y|^2 / 2, scaled."""
        d = left.standardized.shape[1]
        rows = torch.cat([left.extended[:, :d], left.extended[:, [d + 1, d]]], 1)
        return ops.inner_products.unchecked(rows, right.extended)


def _above(
    values: Tensor,  # [n, m]
    threshold: float,
) -> tuple[Tensor, Tensor]:  # [k] int64, [k] int64
    """Places of the numbers above the threshold. Where they are few, most runs of numbers have none."""
    n, m = values.shape
    if m % _RUN == 0:
        runs = values.view(n, m // _RUN, _RUN)
        i, run = (runs.amax(2) > threshold).nonzero().unbind(1)
        if len(i) * _FULL_RUNS <= n * m:
            place, j = (runs[i, run] > threshold).nonzero().unbind(1)
            return i[place], run[place] * _RUN + j
    i, j = (values > threshold).nonzero().unbind(1)
    return i, j
