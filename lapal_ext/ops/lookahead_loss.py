"""Loss of the model after each of many hypothetical batches, over all evaluation points."""

import torch
from torch import Tensor

from lapal_ext.likelihood import mean_field
from lapal_ext.losses import EXPECTED_LOSSES, LOSSES, loss
from lapal_ext.ops.declare import define
from lapal_ext.validation.tensors import check_index_range

_TILE = 1 << 22  # elements of the largest temporary, 16 MiB in float32


def _check(
    triangle: Tensor | None, beta: Tensor | None, variance: Tensor | None, targets: Tensor | None, loss_kind: str
) -> None:
    if loss_kind not in EXPECTED_LOSSES and targets is None:
        raise ValueError(f"targets must be given for loss {loss_kind!r}, got None")
    link = {"triangle": triangle, "beta": beta, "variance": variance}
    missing = [name for name, value in link.items() if value is None]
    if 0 < len(missing) < len(link):
        raise ValueError(
            f"{missing[0]} must be given for the mean-field link, got None; for the plugin link all three are None"
        )


@define(
    shapes={
        "logits": "[C, E]",
        "columns": "[N, E]",
        "batches": "int64 [M, b]",
        "coefficients": "[M, b, C]",
        "triangle": "[M, b, b]",
        "beta": "[M, b]",
        "variance": "[E]",
        "targets": "int64 [E]",
    },
    returns=("float64 [M]",),
    choices={"loss_kind": LOSSES},
    nonnegative=("kappa",),
    indices={"batches": "N", "targets": "C"},
    check=_check,
)
def lookahead_loss(
    logits: Tensor,  # [C, E]
    columns: Tensor,  # [N, E]
    batches: Tensor,  # [M, b]
    coefficients: Tensor,  # [M, b, C]
    triangle: Tensor | None,  # [M, b, b]
    beta: Tensor | None,  # [M, b]
    variance: Tensor | None,  # [E]
    targets: Tensor | None,  # [E]
    loss_kind: str,
    kappa: float,
) -> Tensor:  # [M]
    """Sum over E evaluation points of the loss after each hypothesis.

    logits'(e) = logits(e) + c_e^T H with c_e = columns[batch, e]. With the plugin link the loss is that of
    softmax(logits'); with the mean-field link (``triangle``, ``beta`` and ``variance`` given) that of
    softmax(logits' / sqrt(1 + kappa v')), v' = v - sum_t beta_t z_t^2, T z = c_e.

    Class-major: the evaluation points lie along the last dimension, one in each SIMD lane. Nothing of size E C M is
    ever stored. The sums are float64; the caller may add those of tiles of E.

    Args:
        logits: of the evaluation points before any update, [C, E].
        columns: X Sigma Phi_eval^T for the N distinct rows that occur in the batches, [N, E].
        batches: rows of ``columns`` that make up each hypothesis, int64 [M, b].
        coefficients: H of ``update_coefficients``, [M, b, C].
        triangle: T of ``update_coefficients``, [M, b, b]; None for the plugin link.
        beta: of ``update_coefficients``, [M, b]; None for the plugin link.
        variance: of the evaluation points before any update, [E]; None for the plugin link.
        targets: labels in [0, C), int64 [E]; may be None for the expected losses.
        loss_kind: one of ``losses.LOSSES``.
        kappa: mean-field factor; not used by the plugin link.

    Returns:
        float64 [M]. O(M E b C).
    """
    check_index_range("batches", batches, columns.shape[0], f"[0, {columns.shape[0]}), one of the rows of columns")
    n_classes, n_eval = logits.shape
    sums = logits.new_zeros(batches.shape[0], dtype=torch.float64)
    rows = max(1, _TILE // max(1, n_classes * n_eval))
    for start in range(0, batches.shape[0], rows):
        tile = slice(start, start + rows)
        column = columns[batches[tile]]  # [m, b, E]
        moved = torch.baddbmm(logits, coefficients[tile].mT, column).mT  # [m, E, C]
        if triangle is not None and beta is not None and variance is not None:
            z = torch.linalg.solve_triangular(triangle[tile], column, upper=False, unitriangular=True)
            moved = mean_field(moved, variance - (beta[tile, :, None] * z.square()).sum(1), kappa)
        sums[tile] = loss(moved, targets, loss_kind).sum(1, dtype=torch.float64)
    return sums
