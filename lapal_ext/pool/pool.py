"""The rows one may pick from: the only module that reads pool storage."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.pool.files import Features, as_tensor
from lapal_ext.pool.ranks import Alone, Ranks
from lapal_ext.pool.sharding import Shard, Whole, common_layout
from lapal_ext.posterior import precision as fitting
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import check_variance
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import (
    COMPUTE_DTYPES,
    ShapeSpec,
    as_dense,
    check_dense,
    check_distinct,
    check_finite,
    check_index_range,
    check_overflow,
    check_tensors,
)

_ALONE = Alone()


def check_posterior(posterior: object) -> None:
    """Raise a typed error unless ``posterior`` is a fitted model in a precision that is computed in."""
    if not isinstance(posterior, LastLayerLaplace):
        raise TypeError(f"posterior must be a LastLayerLaplace, got {type(posterior).__name__}")
    if posterior.mean.dtype not in COMPUTE_DTYPES:
        raise TypeError(f"posterior must be float32 or float64, got {posterior.mean.dtype}")
    posterior.require_fitted()


class Pool:
    """A feature matrix in its own storage dtype, read through the standardising of one posterior.

    Args:
        posterior: fitted; whose inputs these are; only its standardising and its dtype are used later.
        features: [N, D], float32, float64, or half precision as storage; an array or a file is read where it is.
        candidates: the rows that may be picked, distinct; all by default. They are copied out, in ascending order, so
            that ties still go to the lowest row.
        ranks: who else has rows; these features come behind those of the ranks before this one, and row numbers,
            those of ``candidates`` too, count all of them.

    Attributes:
        storage: the candidates that are here, [n, D].
        rows_here: how many rows are here, candidates or not.
        shard: where the other candidates are; its picks are what the methods below take.
        size: rows of the whole pool, candidates or not.
    """

    def __init__(
        self,
        posterior: LastLayerLaplace,
        features: Features,
        candidates: Array | None = None,
        ranks: Alone | Ranks = _ALONE,
    ) -> None:
        check_posterior(posterior)
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
        self._posterior = posterior
        self._candidates = None
        self.storage = features.detach()
        self._buffer: Tensor | None = None
        if candidates is not None:
            self._candidates = self.check_rows("candidates", candidates).sort().values
            bounds = torch.searchsorted(self._candidates, self._candidates.new_tensor(bounds)).tolist()
        self.shard = Shard(ranks, bounds) if isinstance(ranks, Ranks) else Whole(bounds[-1])
        if candidates is not None:
            self.storage = self.local(self.storage)

    def __len__(self) -> int:
        """Rows that may be picked and are here."""
        return self.storage.shape[0]

    def check_rows(self, name: str, rows: Array) -> Tensor:  # [K] int64
        """Return distinct row numbers of the matrix that was passed in, or raise a typed error."""
        rows = as_dense(name, rows)
        check_tensors({name: ShapeSpec("int64", ("K",))}, {name: rows})
        if rows.device != self.storage.device:
            raise ValueError(f"{name} must be on {self.storage.device} like pool, got {rows.device}")
        check_index_range(name, rows, self.size, f"[0, {self.size}), one of the rows of pool")
        check_distinct(name, rows)
        return rows

    def local(
        self,
        values: Tensor,  # [m, ...]
    ) -> Tensor:  # [n, ...]
        """What belongs to the candidates, of what belongs to all rows that are here."""
        if self._candidates is None:
            return values
        return values[self._candidates[self.shard.numbers] - self._first]

    def to_rows(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k] int64
        """Row numbers of the matrix that was passed in, of those of all ranks one behind another."""
        return picks if self._candidates is None else self._candidates[picks]

    def to_picks(
        self,
        rows: Tensor,  # [k] int64
        name: str = "indices",
    ) -> Tensor:  # [k] int64
        """Inverse of ``to_rows``; ``name`` is the argument that the rows came in.

        Raises:
            ValueError: a row is not in the pool, or no candidate.
        """
        check_index_range(name, rows, self.size, f"[0, {self.size}), one of the rows of pool")
        if self._candidates is None:
            return rows
        picks = torch.searchsorted(self._candidates, rows).clamp(max=self.shard.total - 1)
        foreign = rows if self.shard.total == 0 else rows[self._candidates[picks] != rows]
        if len(foreign) > 0:
            raise ValueError(f"{name} must be candidates, got {int(foreign[0])}")
        return picks

    def outer(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, D]
        """Raw features of some rows, in the posterior's dtype."""
        return self.shard.gather(self.storage, picks).to(self._posterior.mean.dtype)

    def inner(
        self,
        picks: Tensor,  # [k] int64
    ) -> Tensor:  # [k, D] or [k, D + 1]
        """Features of some rows as the mathematics sees them."""
        return self._posterior.inner_features(self.outer(picks))

    def inner_tiles(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield all rows as the mathematics sees them, a tile [n, D] or [n, D + 1] at a time, with their numbers.

        Every tile overwrites the one before, and the memory is kept for the next time: the allocator puts new tiles
        behind what is held of old ones, and rarely finds room in their place.
        """
        buffer, self._buffer = self._buffer, None
        if buffer is None:
            buffer = self._posterior.mean.new_empty(min(len(self), fitting.TILE_ROWS), self._posterior.mean.shape[1])
        for rows, tile in self._tiles():
            yield rows, self._posterior.inner_features(tile, buffer[: len(tile)])
        self._buffer = buffer

    def columns(
        self,
        directions: Tensor,  # [k, D] or [k, D + 1], inner
    ) -> Tensor:  # [N, k]
        """Product of every row with some directions, one pass over the storage."""
        weights, offsets = self._posterior.fold(directions)
        result = weights.new_empty(len(self), weights.shape[0])
        for rows, tile in self._tiles():
            torch.addmm(offsets, tile.to(weights.dtype), weights.T, out=result[rows])
        return result

    def latent(self, *, with_variance: bool) -> tuple[Tensor, Tensor | None]:  # [N, C], [N]
        """Logits, in class-major memory, and variance of every row at present."""
        logits = self._posterior.mean.new_empty(self._posterior.num_classes, len(self))
        variance = self._posterior.mean.new_empty(len(self)) if with_variance else None
        for rows, inner in self.inner_tiles():
            logits[:, rows] = ops.inner_products(inner, self._posterior.mean).T  # copies of a row tie, to the bit
            if variance is not None:
                variance[rows] = ops.predictive_variance(inner, self._posterior.covariance)
                check_variance(variance[rows], inner, self._posterior.covariance, "pool", rows.start)
        check_overflow("pool", logits)
        return logits.T, variance

    def mean(self) -> Tensor:  # [1, D] or [1, D + 1], float64
        """Average row as the mathematics sees it; zero where there is none."""
        total = self._posterior.mean.new_zeros(1, self._posterior.mean.shape[1], dtype=torch.float64)
        for _, inner in self.inner_tiles():
            total += inner.double().sum(0)
        return self.shard.add(total) / max(1, self.shard.total)

    def norms(self) -> Tensor:  # [N]
        """Norm |phi| of every row as the mathematics sees it."""
        result = self._posterior.mean.new_empty(len(self))
        for rows, inner in self.inner_tiles():
            result[rows] = inner.norm(dim=1)
        check_overflow("pool", result)
        return result

    def _tiles(self) -> list[tuple[slice, Tensor]]:
        starts = range(0, len(self), fitting.TILE_ROWS)
        tiles = fitting.tiles(self.storage)
        return [(slice(start, start + len(tile)), tile) for start, tile in zip(starts, tiles, strict=True)]
