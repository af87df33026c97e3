"""Sherman-Morrison downdate of many covariances at once."""

from torch import Tensor

from lapal_ext.ops.declare import define


@define(
    shapes={"covariance": "[B, D, D]", "features": "[B, D]", "curvature": "[B]"},
    returns=("[B, D, D]", "[B, D]"),
)
def rank_one_update(
    covariance: Tensor,  # [B, D, D]
    features: Tensor,  # [B, D]
    curvature: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:
    """Absorb one observation into each of B covariances.

    u = Sigma phi and Sigma' = Sigma - s / (1 + s phi.u) u u^T, which is (Sigma^-1 + s phi phi^T)^-1.

    Args:
        covariance: [B, D, D], symmetric; only u = Sigma phi depends on which triangle is read.
        features: phi, [B, D].
        curvature: weight s of each observation, [B].

    Returns:
        The new covariance [B, D, D], symmetric to the bit where the old one is, NaN where 1 + s v <= 0; and the
        direction u [B, D]. O(B D^2).
    """
    direction = (covariance @ features[:, :, None])[:, :, 0]
    scale = 1.0 + curvature * (features * direction).sum(1)
    shrinkage = (curvature / scale).where(scale > 0, float("nan"))
    outer = direction[:, :, None] * direction[:, None, :]
    return (covariance - shrinkage[:, None, None] * outer).contiguous(), direction.contiguous()
