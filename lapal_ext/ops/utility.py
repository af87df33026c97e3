"""How much a label of each row would tell, from its predictive alone."""

from torch import Tensor

from lapal_ext import likelihood
from lapal_ext.ops.declare import define


def check_inputs(variance: Tensor | None, scale: Tensor | None, kind: str) -> None:
    """Raise ValueError where a utility lacks what it is made of."""
    if kind == "variance" and variance is None:
        raise ValueError("variance must be given for utility 'variance', got None")
    if kind == "gradient_norm" and scale is None:
        raise ValueError("scale must be given for utility 'gradient_norm', got None")


@define(
    shapes={"logits": "[N, C]", "variance": "[N]", "scale": "[N]"},
    returns=("[N]",),
    choices={"kind": likelihood.UTILITIES},
    nonnegative=("kappa",),
    check=check_inputs,
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
        kind: one of ``likelihood.UTILITIES``, with their formulas there.
        kappa: mean-field factor; not used without ``variance`` and by the kind ``variance``.

    Returns:
        [N]. O(N C).
    """
    linked = logits if variance is None else likelihood.mean_field(logits, variance, kappa)
    return likelihood.utility(linked, variance, scale, kind)
