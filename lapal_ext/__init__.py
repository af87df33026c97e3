"""Deep active learning on last-layer features: closed-form label updates, look-ahead and batch selection.

``LastLayerLaplace`` is the model. ``select_batch`` and ``SequentialSelector`` choose the rows to label. ``look_ahead``,
``select_lookahead`` and ``expected_error_reduction`` compute the loss after hypothetical labels. ``ops`` is the
functional layer underneath, and ``baselines`` has other updates for comparison.

Two more modules are imported by name. ``lapal_ext.features`` turns a network and its inputs into features;
``lapal_ext.interop`` has adapters to other libraries (``sklearn``, ``skactiveml``, ``laplace``). The command line is
``lapal-ext --help``.

Example:
    >>> model = LastLayerLaplace.fit_map(features, labels, num_classes=10)
    >>> batch = select_batch(model, pool, batch_size=10)
    >>> model.update(pool[batch.indices], answers)

All functions except ``ops`` accept a NumPy array in place of a tensor. The array is used as a CPU tensor of the same
dtype that shares its memory. Nothing is converted, so a float32 model needs float32 arrays. Results are tensors.
"""

from importlib.metadata import PackageNotFoundError, version

from lapal_ext.interrupts import end_quietly_while_importing

# ruff: noqa: E402
end_quietly_while_importing()  # before the imports that take seconds

from lapal_ext import baselines, ops
from lapal_ext.errors import NotFittedError, NotPSDError, RankError, StorageError
from lapal_ext.lookahead.expected_error_reduction import expected_error_reduction
from lapal_ext.lookahead.look_ahead import look_ahead
from lapal_ext.lookahead.select_lookahead import select_lookahead
from lapal_ext.ops import backend, build_info
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, LatentPrediction
from lapal_ext.selection.select_batch import select_batch
from lapal_ext.selection.selection_result import SelectionResult
from lapal_ext.selection.sequential_selector import SequentialSelector

__all__ = [
    "LastLayerLaplace",
    "LatentPrediction",
    "NotFittedError",
    "NotPSDError",
    "RankError",
    "SelectionResult",
    "SequentialSelector",
    "StorageError",
    "backend",
    "baselines",
    "build_info",
    "expected_error_reduction",
    "look_ahead",
    "ops",
    "select_batch",
    "select_lookahead",
]

try:
    __version__ = version("lapal_ext")
except PackageNotFoundError:  # a source folder on the path, never installed
    __version__ = "unknown"


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
