"""What a selection returns."""

from typing import NamedTuple

from torch import Tensor

from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

_SHOWN = 10  # picks that ``print`` lists


class SelectionResult(NamedTuple):
    """A batch to label, and the model after it has absorbed the assumed labels."""

    indices: Tensor  # [batch_size] int64, rows of the pool in pick order
    utilities: Tensor  # [batch_size], each at the moment of its pick
    posterior: LastLayerLaplace  # after the updates; the one passed in is unchanged

    def __repr__(self) -> str:
        """The first rows and the range of utilities; never a matrix."""
        rows = ", ".join(map(str, self.indices[:_SHOWN].tolist())) + (", …" if len(self.indices) > _SHOWN else "")
        utilities = [f"{value:.4g}" for value in self.utilities.tolist()]
        span = f", utilities {utilities[0]} (first) to {utilities[-1]} (last)" if utilities else ""
        return f"SelectionResult({len(self.indices)} rows: {rows}{span}; posterior: {self.posterior})"
