"""The evaluation points of a look-ahead, and the losses there after many hypotheses."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.losses import EXPECTED_LOSSES, LOSSES
from lapal_ext.posterior.arguments import check_features, check_targets
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.posterior.updating import check_variance
from lapal_ext.rules import Link, check_link
from lapal_ext.tiles import row_tiles
from lapal_ext.validation.arrays import Array, Labels
from lapal_ext.validation.scalars import check_choice
from lapal_ext.validation.tensors import check_overflow

TILE = 1 << 23  # numbers in the largest temporary, 32 MiB in float32


class Hypotheses(NamedTuple):
    """The updates by m hypothetical batches, in terms of ``ops.update_coefficients``."""

    directions: Tensor  # [n, D], the distinct rows of the batches times the covariance
    batches: Tensor  # [m, b] int64, rows of ``directions``
    coefficients: Tensor  # [m, b, C], H
    triangle: Tensor  # [m, b, b], T
    beta: Tensor  # [m, b]


@dataclass(frozen=True)
class Evaluation:
    """Evaluation points, loss and link, all of them checked."""

    features: Tensor  # [E, D] raw
    targets: Tensor | None  # [E] int64, None for an expected loss
    loss: str
    link: Link

    def __len__(self) -> int:
        """E."""
        return self.features.shape[0]

    def sum_losses(
        self,
        posterior: LastLayerLaplace,
        hypotheses: Hypotheses,
    ) -> Tensor:  # [m] float64
        """Sum of the losses after each hypothesis, in tiles of evaluation points."""
        directions, uses_variance = hypotheses.directions, self.link.uses_variance
        sums = torch.zeros(len(hypotheses.batches), dtype=torch.float64, device=directions.device)
        both = torch.cat([posterior.mean, directions])  # one product gives logits and columns
        for tile in tiles(len(self), len(both)):
            points = posterior.standardization.standardized(self.features[tile])
            products = ops.inner_products(both, points)
            logits, columns = products.split([posterior.num_classes, len(directions)])
            # Columns that are not finite make every loss NaN except zero_one, so they are only checked for that one.
            check_overflow("eval_features", products if self.loss == "zero_one" else logits)
            variance = ops.predictive_variance(points, posterior.covariance) if uses_variance else None
            if variance is not None:
                check_variance(variance, points, posterior.covariance, "eval_features", tile.start)
            sums += ops.lookahead_loss(
                logits,
                columns,
                hypotheses.batches,
                hypotheses.coefficients,
                hypotheses.triangle if uses_variance else None,
                hypotheses.beta if uses_variance else None,
                variance,
                None if self.targets is None else self.targets[tile],
                self.loss,
                self.link.kappa,
            )
            del points, products, logits, columns  # before the next tile is allocated
        check_overflow("eval_features", sums)
        return sums


def check_evaluation(
    posterior: LastLayerLaplace,
    eval_features: Array,
    eval_targets: Labels | None,
    loss: str | None,
    link: str,
) -> Evaluation:
    """Return the checked evaluation, or raise a typed error.

    Without a loss it is ``cross_entropy`` where there are ``eval_targets``, and ``expected_zero_one`` where there are
    none. Labels that the loss would not use are an error.
    """
    if loss is None:
        loss = "expected_zero_one" if eval_targets is None else "cross_entropy"
    check_choice("loss", loss, LOSSES)
    if loss in EXPECTED_LOSSES and eval_targets is not None:
        raise ValueError(f"eval_targets must be None for loss={loss!r}, which does not use labels")
    features = check_features(posterior, eval_features, name="eval_features", nonempty=True)
    targets = None
    if eval_targets is not None:
        targets = check_targets(posterior, eval_targets, len(features), name="eval_targets")
    elif loss not in EXPECTED_LOSSES:
        raise ValueError(f"eval_targets must be given for loss={loss!r}; {' and '.join(EXPECTED_LOSSES)} need none")
    return Evaluation(features, targets, loss, check_link(link))


def tiles(count: int, width: int) -> Iterator[slice]:
    """Cut ``count`` rows of ``width`` numbers each into tiles of at most ``TILE`` numbers."""
    return row_tiles(count, TILE // max(1, width))
