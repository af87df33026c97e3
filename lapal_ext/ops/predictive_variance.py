"""Variance of the logits of many rows."""

from torch import Tensor

from lapal_ext.ops.declare import define


@define(shapes={"features": "[N, D]", "covariance": "[D, D]"}, returns=("[N]",))
def predictive_variance(
    features: Tensor,  # [N, D]
    covariance: Tensor,  # [D, D]
) -> Tensor:  # [N]
    """v_n = phi_n^T Sigma phi_n, one variance per row, shared by the classes.

    The [N, N] predictive covariance is never formed.

    Args:
        features: phi, [N, D].
        covariance: Sigma, symmetric, [D, D].

    Returns:
        [N]; rounding may leave a value slightly below zero. O(N D^2).
    """
    return ((features @ covariance) * features).sum(1)
