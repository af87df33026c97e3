"""Kernel values between rows of a pool and references, and the gains in coverage that follow from them."""

from collections.abc import Callable

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.tiles import TILE_ROWS, row_tiles

_TILE = 1 << 22  # kernel values that are computed at a time, 16 MiB in float32
_OF_SUM, _OF_KERNEL = 64.0, 16.0  # eps: the error of a sum of kernel values, and of one at h^2 = 1
_MOST = 0.25  # of a gain: where kernel values are mostly rounding, some gains must still differ


class KernelRows:
    """The Gaussian kernel of directions, k(x, r) = exp(-|x - r|^2 / h^2), for rows of a pool in this process.

    Kernel values are kept as far as ``memory`` allows: those of all rows, or else those of the rows whose gain was
    asked for by number, which are few and are asked for again and again. Without them the gains of all rows are
    computed by the fused op, which stores nothing.

    Args:
        directions_of: the directions [k, D + 1] of rows [k], by their local numbers.
        n_rows: number of rows in this process.
        references: directions of the references, [E, D + 1].
        squared_bandwidth: h^2 > 0.
        memory: bytes for kernel values.
        are_rows: whether the references are the rows in this process, in their order: half of the products is enough.

    Attributes:
        rounding: relative error of a gain.
    """

    def __init__(
        self,
        directions_of: Callable[[Tensor], Tensor],
        n_rows: int,
        references: Tensor,
        squared_bandwidth: float,
        memory: float,
        *,
        are_rows: bool,
    ) -> None:
        self._directions_of, self._n_rows = directions_of, n_rows
        self._references = references.T.contiguous().T  # the layout that the kernels read in place
        self._inverse, self._are_rows = 1.0 / squared_bandwidth, are_rows
        room = int(memory // (references.element_size() * max(1, len(references))))
        self._keeps_all = room >= n_rows
        # A product of two directions is exact to some eps, and the exponent is that error times 2 / h^2.
        self.rounding = min(_MOST, torch.finfo(references.dtype).eps * max(_OF_SUM, _OF_KERNEL * self._inverse))
        self._kept = references.new_empty(min(room, n_rows), len(references))
        self._places = torch.full((n_rows,), -1, dtype=torch.int64, device=references.device)
        self._count = 0  # rows of ``_kept`` in use

    def values(
        self,
        directions: Tensor,  # [k, D + 1]
    ) -> Tensor:  # [k, E]
        """Kernel values of any points."""
        products = ops.inner_products.unchecked(directions, self._references)
        return products.sub_(1.0).clamp_(max=0.0).mul_(2.0 * self._inverse).exp_()

    def largest(
        self,
        directions: Tensor,  # [L, D + 1]
    ) -> Tensor:  # [E]
        """The largest kernel value of every reference; zero where there are no points."""
        result = self._references.new_zeros(len(self._references))
        for rows in row_tiles(len(directions), _TILE // max(1, len(result))):
            torch.maximum(result, self.values(directions[rows]).amax(0), out=result)
        return result

    def of_row(
        self,
        row: Tensor,  # [1] int64
    ) -> Tensor:  # [E]
        """Kernel values of one row."""
        place = self._places[row]
        return self._kept[place[0]] if int(place) >= 0 else self.values(self._directions_of(row))[0]

    def all_gains(
        self,
        weight: Tensor,  # [E]
        covered: Tensor,  # [E]
    ) -> Tensor:  # [n] float64
        """Gain of every row; ``ops.coverage_gain`` has the formula."""
        everything = torch.arange(self._n_rows, device=weight.device)
        if self._keeps_all:
            for rows in row_tiles(self._n_rows, _TILE // max(1, len(weight))):
                if self._count <= rows.start:
                    self._keep(everything[rows], self.values(self._directions_of(everything[rows])))
            return ops.coverage_gain.unchecked(self._kept, weight, covered)
        if self._are_rows:
            points = self._directions_of(everything)
            return ops.kernel_coverage.unchecked(points, points, weight, covered, self._inverse)
        gains = weight.new_empty(self._n_rows, dtype=torch.float64)
        for rows in row_tiles(self._n_rows, TILE_ROWS):
            gains[rows] = ops.kernel_coverage.unchecked(
                self._directions_of(everything[rows]), self._references, weight, covered, self._inverse
            )
        return gains

    def gains(
        self,
        rows: Tensor,  # [k] int64
        weight: Tensor,  # [E]
        covered: Tensor,  # [E]
    ) -> Tensor:  # [k] float64
        """Gains of some rows."""
        places = self._places[rows]
        missing = rows[places < 0]
        if len(missing) == 0:
            return ops.coverage_gain.unchecked(self._kept[places], weight, covered)
        if self._count + len(missing) <= len(self._kept):
            self._keep(missing, self.values(self._directions_of(missing)))
            return ops.coverage_gain.unchecked(self._kept[self._places[rows]], weight, covered)
        points = self._directions_of(rows)
        return ops.kernel_coverage.unchecked(points, self._references, weight, covered, self._inverse)

    def _keep(self, rows: Tensor, values: Tensor) -> None:
        places = slice(self._count, self._count + len(rows))
        self._kept[places] = values
        self._count = places.stop  # before the places, so that an exception between them loses room and no value
        self._places[rows] = torch.arange(places.start, places.stop, device=rows.device)
