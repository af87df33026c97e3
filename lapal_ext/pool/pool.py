"""The rows that may be picked, in their storage dtype, and their standardised features."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.entries import outside_inference_mode
from lapal_ext.pool.checksum import PoolChecksum, checksum
from lapal_ext.pool.feature_files import Features, as_tensor
from lapal_ext.pool.sharding import Ranks, Shard, common_layout
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, check_posterior
from lapal_ext.posterior.updating import check_variance
from lapal_ext.tiles import row_tiles
from lapal_ext.validation.arrays import Rows
from lapal_ext.validation.tensors import (
    ShapeSpec,
    as_labels,
    check_dense,
    check_distinct,
    check_finite,
    check_index_range,
    check_overflow,
    check_tensors,
)

_SUMMED_ROWS = 512  # rows that are held in float64 at a time, in the second-level cache


class Pool:
    """A feature matrix in its own storage dtype, standardised by one posterior when it is read.

    Args:
        posterior: fitted; the rows are its inputs. The pool keeps its current mean, covariance and standardisation.
        features: [N, D], float32, float64, or half precision as storage; an array or a file is not copied.
        candidates: the rows that may be picked, distinct; all by default. They are copied, in ascending order, so that
            ties still go to the lowest row.
        ranks: the processes that share the pool; only this one by default. Row numbers, also in ``candidates``, count
            the rows of all ranks, in rank order.

    Attributes:
        storage: the candidates in this process, [n, D].
        rows_here: number of rows in this process, candidates or not.
        shard: the distribution of the candidates over the processes. The methods below take its picks.
        size: number of rows of the whole pool, candidates or not.
    """

    @outside_inference_mode
    def __init__(
        self,
        posterior: LastLayerLaplace,
        features: Features,
        candidates: Rows | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        check_posterior(posterior)
        ranks = Ranks() if ranks is None else ranks
        features = check_dense("pool", as_tensor("pool", features))
        check_tensors({"pool": ShapeSpec("storage", ("N", str(posterior.num_features)))}, {"pool": features})
        mean = posterior.mean
        if features.device != mean.device:
            raise ValueError(f"pool must be on {mean.device} like the posterior, got {features.device}")
        allowed = (mean.dtype,) if mean.dtype == torch.float64 else (mean.dtype, torch.bfloat16, torch.float16)
        if features.dtype not in allowed:
            raise TypeError(
                f"pool must be {' or '.join(map(str, allowed))}, as the posterior is {mean.dtype}, got {features.dtype}"
            )
        check_finite("pool", features)
        features, bounds = common_layout(ranks, features)
        self._first, self.size = bounds[ranks.rank], bounds[-1]
        self.rows_here = features.shape[0]
        self._features, self._rows, self._ranks = features.detach(), Shard(ranks, bounds), ranks
        self._mean, self._covariance = posterior.mean, posterior.covariance
        self._standardization = posterior.standardization
        self._candidates = None
        self.storage = features.detach()
        self._buffer: Tensor | None = None
        if candidates is not None:
            self._candidates = self.check_rows("candidates", candidates).sort().values
            bounds = torch.searchsorted(self._candidates, self._candidates.new_tensor(bounds)).tolist()
        self.shard = Shard(ranks, bounds)
        if candidates is not None:
            self.storage = self.local(self.storage)

    def __len__(self) -> int:
        """Number of candidates in this process."""
        return self.storage.shape[0]

    def check_rows(self, name: str, rows: object) -> Tensor:  # [K] int64
        """Return ``rows`` as a tensor or raise a typed error unless they are distinct row numbers of the pool.

        They are integers of any type: a tensor, an array, or a list.
        """
        rows = as_labels(name, rows, self.storage.device, rows=True)
        check_tensors({name: ShapeSpec("int64", ("K",))}, {name: rows})
        check_index_range(name, rows, self.size, f"[0, {self.size}), one of the rows of pool")
        check_distinct(name, rows)
        return rows

    def checksum(self) -> PoolChecksum:
        """Checksum of all rows of all ranks, candidates or not."""
        return checksum(self._features, self._rows, self._ranks)

    def local(
        self,
        values: Tensor,  # [m, ...]
    ) -> Tensor:  # [n, ...]
        """Select the values of the candidates from the values of all rows in this process."""
        if self._candidates is None:
            return values
        return values[self._candidates[self.shard.numbers] - self._first]

    def to_rows(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k] int64
        """Row numbers of the picks in the whole pool, that is in the matrices of all ranks in order."""
        return picks if self._candidates is None else self._candidates[picks]

    def to_picks(
        self,
        rows: Tensor,  # [k] int64
        name: str = "indices",
    ) -> Tensor:  # [k] int64
        """Inverse of ``to_rows``; ``name`` is the argument that holds the rows, for errors.

        Raises:
            ValueError: a row is not in the pool, or is not a candidate.
        """
        check_index_range(name, rows, self.size, f"[0, {self.size}), one of the rows of pool")
        if self._candidates is None:
            return rows
        picks = torch.searchsorted(self._candidates, rows).clamp(max=self.shard.total - 1)
        foreign = rows if self.shard.total == 0 else rows[self._candidates[picks] != rows]
        if len(foreign) > 0:
            raise ValueError(f"{name} must be candidates, got {int(foreign[0])}")
        return picks

    def raw(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, D]
        """Raw features of the picks, in the dtype of the posterior."""
        return self.shard.gather(self.storage, picks).to(self._mean.dtype)

    def standardized(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, D] or [k, D + 1]
        """Standardised features of the picks."""
        return self._standardization.standardized(self.raw(picks))

    def standardized_here(
        self,
        rows: Tensor | slice,  # [k] int64
    ) -> Tensor:  # [k, D] or [k, D + 1]
        """Standardised features of candidates in this process, by their numbers here."""
        return self._standardization.standardized(self.storage[rows])

    def standardized_rows(
        self,
        rows: Tensor,  # [k] int64
    ) -> Tensor:  # [k, D] or [k, D + 1]
        """Standardised features of rows of the whole pool, candidates or not."""
        return self._standardization.standardized(self.values_of_rows(self._features, rows))

    def values_of_rows(
        self,
        values: Tensor,  # [m, ...] of all rows in this process
        rows: Tensor,  # [k] int64
    ) -> Tensor:  # [k, ...]
        """Values of rows of the whole pool, candidates or not."""
        return self._rows.gather(values, rows)

    def standardized_tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield tiles of rows: a slice of row numbers, and the standardised rows [n, D] or [n, D + 1].

        Every tile overwrites the previous one, and the buffer is kept for the next call. New buffers would fragment
        memory: the allocator rarely reuses the space of old ones.
        """
        buffer, self._buffer = self._buffer, None
        tiles = list(row_tiles(len(self)))
        if buffer is None:
            buffer = self._tile(max((tile.stop - tile.start for tile in tiles), default=0))
        for rows in tiles:
            yield rows, self._standardization.standardized(self.storage[rows], buffer[: rows.stop - rows.start])
        self._buffer = buffer

    @outside_inference_mode
    def _tile(self, n_rows: int) -> Tensor:  # [n_rows, D] or [n_rows, D + 1]
        return self._mean.new_empty(n_rows, self._mean.shape[1])

    def columns(
        self,
        directions: Tensor,  # [k, D] or [k, D + 1], of standardised features
    ) -> Tensor:  # [N, k]
        """Product of every row with every direction, in one pass over the storage."""
        weights, offsets = self._standardization.raw(directions)
        result = weights.new_empty(len(self), weights.shape[0])
        for rows in row_tiles(len(self)):
            torch.addmm(offsets, self.storage[rows].to(weights.dtype), weights.T, out=result[rows])
        return result

    def latent(self, *, with_variance: bool) -> tuple[Tensor, Tensor | None]:  # [N, C], [N]
        """Logits, in class-major memory, and variance of every row under the posterior."""
        logits = self._mean.new_empty(self._mean.shape[0], len(self))
        variance = self._mean.new_empty(len(self)) if with_variance else None
        for rows, x in self.standardized_tiles():
            logits[:, rows] = ops.inner_products(x, self._mean).T  # equal rows have equal logits, to the bit
            if variance is not None:
                variance[rows] = ops.predictive_variance(x, self._covariance)
                check_variance(variance[rows], x, self._covariance, "pool", rows.start)
        check_overflow("pool", logits)
        return logits.T, variance

    def mean(self) -> Tensor:  # [D], float64
        """Average of the raw rows of all ranks; zero if there are none."""
        total = self._mean.new_zeros(self.storage.shape[1], dtype=torch.float64)
        for rows in row_tiles(len(self), _SUMMED_ROWS):
            total += self.storage[rows].double().sum(0)
        return self.shard.add(total) / max(1, self.shard.total)

    def standardized_mean(self) -> Tensor:  # [1, D] or [1, D + 1], float64
        """The average row, standardised."""
        return self._standardization.standardized(self.mean()[None]).double()

    def norms(self) -> Tensor:  # [N]
        """Norm |phi| of every standardised row."""
        centre, scale, has_bias = self._standardization
        squares = centre.new_full((len(self),), torch.inf)
        # Distances to the centre, in one pass without a standardised copy. All rows are taken, so that none is picked.
        every_row = torch.ones_like(squares, dtype=torch.bool)
        ops.nearest_distance_.unchecked(
            self.storage, centre[None], scale.expand_as(centre).contiguous(), squares, every_row
        )
        result = (squares + 1.0 if has_bias else squares).sqrt()
        check_overflow("pool", result)
        return result
