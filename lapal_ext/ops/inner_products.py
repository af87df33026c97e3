"""Inner products of the rows of two matrices."""

from torch import Tensor

from lapal_ext.ops.declare import define


@define(shapes={"rows": "[N, D]", "points": "[E, D]"}, returns=("[N, E]",))
def inner_products(
    rows: Tensor,  # [N, D]
    points: Tensor,  # [E, D]
) -> Tensor:  # [N, E]
    """out_ne = rows_n . points_e, the matrix product rows points^T.

    With rows = X Sigma these are the columns by which a batch changes every evaluation point. The order of summation in
    the kernel depends on D alone, so equal points have equal columns, to the bit, for any number of threads and in any
    tile.

    Args:
        rows: [N, D].
        points: [E, D], the longer of the two: the kernel is vectorised over it.

    Returns:
        [N, E]. O(N E D).
    """
    return (rows @ points.mT).contiguous()
