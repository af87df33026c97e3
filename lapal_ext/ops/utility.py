"""How informative the label of each row would be, from its predictive alone."""

from torch import Tensor

from lapal_ext import likelihood, utilities
from lapal_ext.ops.declare import define


@define(
    shapes={"logits": "[N, C]", "variance": "[N]", "scale": "[N]"},
    returns=("[N]",),
    choices={"kind": utilities.UTILITIES},
    nonnegative=("kappa",),
    check=utilities.check_inputs,
)
def utility(
    logits: Tensor,  # [N, C]
    variance: Tensor | None,  # [N]
    scale: Tensor | None,  # [N]
    kind: str,
    kappa: float,
) -> Tensor:  # [N]
    """Link, softmax and utility in one pass; higher is better for every kind.

    Args:
        logits: [N, C].
        variance: v, [N]; None for the plugin link.
        scale: norm of the features, [N], for ``gradient_norm``; else None.
        kind: one of ``utilities.UTILITIES``; the formulas are in ``utilities``.
        kappa: mean-field factor; not used without ``variance`` and by the kind ``variance``.

    Returns:
        [N]. O(N C).
    """
    linked = logits if variance is None else likelihood.mean_field(logits, variance, kappa)
    return utilities.utility(linked, variance, scale, kind)
