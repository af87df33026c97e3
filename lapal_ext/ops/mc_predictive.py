"""Monte Carlo predictive and its mean entropy, streamed over the samples."""

import torch
from torch import Tensor

from lapal_ext.losses import loss
from lapal_ext.ops.declare import define
from lapal_ext.validation.tensors import shape_text


def _check(noise: Tensor) -> None:
    if noise.shape[0] == 0:
        raise ValueError(f"noise must hold at least one sample, got shape {shape_text(noise.shape)}")


@define(
    shapes={"logits": "[N, C]", "variance": "[N]", "noise": "[S, C]"},
    returns=("[N, C]", "[N]"),
    check=_check,
)
def mc_predictive(
    logits: Tensor,  # [N, C]
    variance: Tensor,  # [N]
    noise: Tensor,  # [S, C]
) -> tuple[Tensor, Tensor]:
    """Mean over s of softmax(z + sqrt(v) noise_s), and of its entropy.

    The rows share the noise and [N, S, C] is never stored. BALD (Houlsby et al., arXiv 1112.5745) is the entropy of the
    first result minus the second. A variance that rounding has made negative counts as zero.

    Args:
        logits: z, [N, C].
        variance: v, [N].
        noise: standard normal, [S, C] with S >= 1.

    Returns:
        Mean probabilities [N, C] and mean entropy [N], in nats. O(N S C).
    """
    deviation = variance.clamp(min=0.0).sqrt()[:, None]
    mean = logits.new_zeros(logits.shape, dtype=torch.float64)
    entropy = logits.new_zeros(logits.shape[0], dtype=torch.float64)
    for sample in noise:
        drawn = logits + deviation * sample
        mean += drawn.softmax(1)
        entropy += loss(drawn, None, "expected_cross_entropy")
    return (mean / noise.shape[0]).to(logits.dtype), (entropy / noise.shape[0]).to(logits.dtype)
