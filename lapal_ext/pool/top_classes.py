"""The likeliest classes of every row of a pool, tile by tile, for pools whose probabilities do not fit into memory."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from lapal_ext.entries import entry
from lapal_ext.pool.feature_files import Features, as_tensor
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, check_posterior
from lapal_ext.tiles import row_tiles
from lapal_ext.validation.scalars import check_integer, check_number
from lapal_ext.validation.tensors import ShapeSpec, check_dense, check_tensors


class TopClasses(NamedTuple):
    """The likeliest classes of some rows, best first."""

    rows: slice
    classes: Tensor  # [n, count] int64
    probabilities: Tensor  # [n, count]


@entry
def top_classes(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    count: int = 2,
    temperature: float = 1.0,
) -> Iterator[TopClasses]:
    """Return the ``count`` likeliest classes of every row, computed for a tile of rows at a time, in order.

    Args:
        posterior: a model; its probabilities are softmax(z / T) of its logits z.
        pool: features; a file is mapped, and a tile at a time is converted to the dtype of the posterior.
        count: at most the number of classes.
        temperature: T > 0, as ``posterior.calibration.fit_temperature`` finds it; 1 gives ``link="plugin"``.

    Raises:
        ValueError, TypeError: an argument is invalid; the message of a value that is not finite has its row in the
            pool.
    """
    check_posterior(posterior)
    count = check_integer("count", count, at_least=1, at_most=posterior.num_classes, limit="the number of classes")
    temperature = check_number("temperature", temperature, above=0.0)
    features = check_dense("pool", as_tensor("pool", pool))
    check_tensors({"pool": ShapeSpec("storage", ("N", str(posterior.num_features)))}, {"pool": features})
    return _tiles(posterior, features, count, temperature)


def _tiles(
    posterior: LastLayerLaplace,
    features: Tensor,  # [N, D]
    count: int,
    temperature: float,
) -> Iterator[TopClasses]:
    for rows in row_tiles(len(features)):
        tile = features[rows].to(posterior.mean.dtype)
        bad = tile.isfinite().all(1).logical_not().nonzero()
        if len(bad) > 0:
            raise ValueError(f"pool must be finite, got NaN or infinity in row {rows.start + int(bad[0])}")
        best = (posterior.predict_logits(tile) / temperature).softmax(1).topk(count, dim=1)
        yield TopClasses(rows, best.indices, best.values)
