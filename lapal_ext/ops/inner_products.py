"""Inner products of the rows of two matrices."""

from torch import Tensor

from lapal_ext.ops.declare import define


@define(shapes={"rows": "[N, D]", "points": "[E, D]"}, returns=("[N, E]",))
def inner_products(
    rows: Tensor,  # [N, D]
    points: Tensor,  # [E, D]
) -> Tensor:  # [N, E]
    """out_ne = rows_n . points_e, the matrix product rows points^T.

    With rows = X Sigma these are the columns through which a batch moves every evaluation point. The kernel adds each
    product in an order that D alone decides, so equal points have equal columns, to the bit, for any number of threads
    and any tile they lie in.

    Args:
        rows: [N, D].
        points: [E, D], the longer side: it lies in the vector lanes.

    Returns:
        [N, E]. O(N E D).
    """
    return (rows @ points.mT).contiguous()
