"""Predictive probabilities of many rows."""

from torch import Tensor

from lapal_ext.likelihood import mean_field
from lapal_ext.ops.declare import define


@define(shapes={"logits": "[N, C]", "variance": "[N]"}, returns=("[N, C]",), nonnegative=("kappa",))
def predictive(
    logits: Tensor,  # [N, C]
    variance: Tensor | None,  # [N]
    kappa: float,
) -> Tensor:  # [N, C]
    """softmax(z / sqrt(1 + kappa v)), the mean-field (here also probit) predictive of MacKay (1992).

    Args:
        logits: z, [N, C].
        variance: v, [N]; None for the plugin predictive softmax(z).
        kappa: mean-field factor, usually pi / 8.

    Returns:
        Probabilities [N, C]. O(N C).
    """
    linked = logits if variance is None else mean_field(logits, variance, kappa)
    return linked.softmax(1)
