"""One pick of sequential selection: a single pass over the pool."""

from torch import Tensor

from lapal_ext import likelihood, utilities
from lapal_ext.ops.best_row import pick_best
from lapal_ext.ops.declare import define
from lapal_ext.ops.row_products import dot_rows


@define(
    shapes={
        "u": "[D]",
        "pool": "storage [N, D]",
        "offset": "[]",
        "g": "[C]",
        "beta": "[]",
        "logits": "[N, C]",
        "variance": "[N]",
        "taken": "bool [N]",
        "scale": "[N]",
    },
    returns=("int64 []", "[]"),
    mutates=("logits", "variance", "taken"),
    choices={"kind": utilities.UTILITIES},
    nonnegative=("kappa",),
    check=utilities.check_inputs,
)
def selection_step_(
    pool: Tensor,  # [N, D]
    u: Tensor,  # [D]
    offset: Tensor,  # []
    g: Tensor,  # [C]
    beta: Tensor,  # []
    logits: Tensor,  # [N, C]
    variance: Tensor | None,  # [N]
    taken: Tensor,  # [N]
    scale: Tensor | None,  # [N]
    kind: str,
    kappa: float,
) -> tuple[Tensor, Tensor]:
    """Absorb the previous pick's label into the whole pool, score it, and take the best row.

    c = Phi u + offset;  logits += c g^T;  v -= beta c^2. Then the row with the largest utility among those not taken is
    taken; ties go to the lowest index. The first pick passes u = g = 0 and beta = 0.

    Args:
        pool: raw features, [N, D]; float32, float64, bfloat16 or float16 storage, computed in the dtype of ``u``.
        u: Sigma phi* of the previous pick, as weights of raw features, [D].
        offset: the constant that bias and centring add to c, 0-d.
        g: a (e_y - p) of the previous pick, [C].
        beta: s' / (1 + s' v) of the previous pick, 0-d.
        logits: of the pool, [N, C], changed in place; class-major memory (strides (1, N)) is the fast layout.
        variance: of the pool, [N], changed in place; None for the plugin link.
        taken: rows that may not be picked, bool [N]; the pick is set in place.
        scale: norm of the features, [N], for ``gradient_norm``; else None.
        kind: one of ``utilities.UTILITIES``.
        kappa: mean-field factor; 0 keeps the plugin link while ``variance`` is tracked.

    Returns:
        Index of the pick, int64 0-d, -1 if every row was taken; and its utility, 0-d. A NaN counts as the largest
        utility, so that the caller can detect it. O(N (D + C)).
    """
    column = dot_rows(pool, u) + offset
    logits += column[:, None] * g
    if variance is not None:
        variance -= beta * column.square()
    linked = logits if variance is None else likelihood.mean_field(logits, variance, kappa)
    return pick_best(utilities.utility(linked, variance, scale, kind), taken)
