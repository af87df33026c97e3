"""Gain in coverage of many rows, from kernel values in memory."""

from torch import Tensor

from lapal_ext.ops.declare import define
from lapal_ext.tiles import row_tiles

_TILE = 1 << 20  # elements of the largest temporary, 4 MiB in float32


@define(shapes={"kernel": "[M, E]", "weight": "[E]", "covered": "[E]"}, returns=("float64 [M]",))
def coverage_gain(
    kernel: Tensor,  # [M, E]
    weight: Tensor,  # [E]
    covered: Tensor,  # [E]
) -> Tensor:  # [M] float64
    """gain_j = sum_e weight_e max(0, kernel_je - covered_e): how much better row j would cover the references.

    The generalized coverage of a set S is sum_e weight_e max_{s in S} k(s, e), and this is what it grows by when row j
    joins S. Source: Bae et al., "Uncertainty Herding", arXiv 2412.20644.

    Args:
        kernel: k(j, e), for example from ``ops.inner_products``, [M, E].
        weight: of every reference, such as its uncertainty, [E].
        covered: max_{s in S} k(s, e) so far, [E].

    Returns:
        float64 [M]. The order of a sum depends on E alone, so equal rows have equal gains, to the bit. O(M E).
    """
    gains = kernel.new_empty(kernel.shape[0], dtype=weight.dtype).double()
    for rows in row_tiles(kernel.shape[0], _TILE // max(1, kernel.shape[1])):
        gains[rows] = ((kernel[rows] - covered).clamp_(min=0.0) * weight).sum(1).double()
    return gains
