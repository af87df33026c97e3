"""One pick of BAIT with the binary-surrogate Fisher information: a single pass over the pool."""

from torch import Tensor

from lapal_ext.ops.best_row import pick_best
from lapal_ext.ops.declare import define
from lapal_ext.ops.row_products import dot_rows


@define(
    shapes={
        "u": "[D]",
        "u_offset": "[]",
        "w": "[D]",
        "w_offset": "[]",
        "fisher_norm": "[]",
        "beta": "[]",
        "curvature": "[N]",
        "h": "[N]",
        "q": "[N]",
        "pool": "storage [N, D]",
        "taken": "bool [N]",
    },
    returns=("int64 []", "[]"),
    mutates=("h", "q", "taken"),
)
def bait_step_(
    pool: Tensor,  # [N, D]
    u: Tensor,  # [D]
    u_offset: Tensor,  # []
    w: Tensor,  # [D]
    w_offset: Tensor,  # []
    fisher_norm: Tensor,  # []
    beta: Tensor,  # []
    curvature: Tensor,  # [N]
    h: Tensor,  # [N]
    q: Tensor,  # [N]
    taken: Tensor,  # [N]
) -> tuple[Tensor, Tensor]:
    """Absorb the previous pick, then take the row whose label lowers tr(A^-1 F) most.

    Let A be the information before the next pick, F the Fisher matrix of the pool, and s_n phi_n phi_n^T the rank-one
    Fisher information of a row. The exact gain of row n is s q / (1 + s h), h = phi^T A^-1 phi, q = phi^T A^-1 F A^-1
    phi. A pick with u = A^-1 phi*, w = A^-1 F u, beta = s* / (1 + s* h*) changes h and q by
        h -= beta (phi.u)^2        q += beta^2 (phi.u)^2 (u^T F u) - 2 beta (phi.u)(phi.w).

    Args:
        pool: raw features, [N, D], of any storage dtype.
        u: of the previous pick, as weights of raw features, [D]; zero at the first pick.
        u_offset: the constant that bias and centring add to phi.u, 0-d.
        w: of the previous pick, as weights of raw features, [D].
        w_offset: the constant that bias and centring add to phi.w, 0-d.
        fisher_norm: u^T F u, 0-d.
        beta: of the previous pick, 0-d.
        curvature: s of each row, [N].
        h: [N], changed in place.
        q: [N], changed in place.
        taken: rows that may not be picked, bool [N]; the pick is set in place.

    Returns:
        Index, int64 0-d, -1 if every row was taken, and the gain, 0-d. O(N D).

    Source: Ash et al., arXiv 2106.09675, objective (3), with the Fisher matrix of a binary problem in place of the
    C-class one; the two-products-per-pick form is ours.
    """
    along_u, along_w = dot_rows(pool, u) + u_offset, dot_rows(pool, w) + w_offset
    h -= beta * along_u.square()
    q += beta * along_u * (beta * along_u * fisher_norm - 2.0 * along_w)
    return pick_best(curvature * q / (1.0 + curvature * h), taken)
