"""Gain in coverage of many rows under the Gaussian kernel, with no kernel matrix in memory."""

from torch import Tensor

from lapal_ext.ops.coverage_gain import coverage_gain
from lapal_ext.ops.declare import define
from lapal_ext.tiles import row_tiles

_LARGEST = 1e30  # its product with a distance is finite in float32
_TILE = 1 << 20  # elements of the largest temporary, 4 MiB in float32


def _check(inverse_squared_bandwidth: float) -> None:
    if not 0.0 < inverse_squared_bandwidth <= _LARGEST:
        raise ValueError(
            f"inverse_squared_bandwidth must be above 0 and at most {_LARGEST:g}, got {inverse_squared_bandwidth:g}"
        )


@define(
    shapes={"rows": "[M, D]", "references": "[E, D]", "weight": "[E]", "covered": "[E]"},
    returns=("float64 [M]",),
    nonnegative=("inverse_squared_bandwidth",),
    check=_check,
)
def kernel_coverage(
    rows: Tensor,  # [M, D]
    references: Tensor,  # [E, D]
    weight: Tensor,  # [E]
    covered: Tensor,  # [E]
    inverse_squared_bandwidth: float,
) -> Tensor:  # [M] float64
    """gain_j = sum_e weight_e max(0, k_je - covered_e) with the Gaussian kernel k_je = exp(-|x_j - r_e|^2 / h^2).

    The vectors have length one, so |x - r|^2 = 2 (1 - x.r): the kernel needs one inner product per pair. A product
    above one is rounding, and counts as one. ``coverage_gain`` has the source; the fused form, with no [M, E] matrix,
    is ours.

    Args:
        rows: x, of length one, [M, D].
        references: r, of length one, [E, D].
        weight: of every reference, such as its uncertainty, [E].
        covered: the largest kernel value of every reference so far, [E].
        inverse_squared_bandwidth: 1 / h^2 > 0.

    Returns:
        float64 [M]. The order of a sum depends on D and E alone, so equal rows have equal gains, to the bit, for any
        number of rows and threads. O(M E D). If ``rows`` is ``references``, the CPU kernel computes half of the
        products, and the gains of equal rows may differ by rounding.
    """
    gains = rows.new_empty(rows.shape[0], dtype=weight.dtype).double()
    for tile in row_tiles(rows.shape[0], _TILE // max(1, references.shape[0])):
        exponent = (rows[tile] @ references.mT - 1.0).clamp_(max=0.0) * (2.0 * inverse_squared_bandwidth)
        gains[tile] = coverage_gain.reference(exponent.exp_(), weight, covered)
    return gains
