"""Tiles of rows, so that temporaries computed from rows stay small."""

from collections.abc import Iterator

TILE_ROWS = 8192  # rows that are standardised, or held in float64, at a time: 25 MB at D = 384 in float64
_ALIGNED = 32  # numbers: one cache line in half precision, two and four in float32 and float64


def row_tiles(count: int, size: int | None = None) -> Iterator[slice]:
    """Cut ``count`` rows into tiles of at most max(1, ``size``) rows, by default ``TILE_ROWS``.

    A size above 32 is rounded down to a multiple of 32, so that the rows of a product with a tile begin at cache lines.
    """
    size = max(1, TILE_ROWS if size is None else size)
    size -= size % _ALIGNED if size > _ALIGNED else 0
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
