"""From test probabilities to records."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.study.records import Record

_BINS = 15  # of the calibration error, as is usual since Guo et al., arXiv 1706.04599


class Outcome(NamedTuple):
    """What a strategy predicts after a number of labels."""

    strategy: str
    labels: int
    log_probabilities: Tensor  # [T, C] float64, of the test rows
    seconds: float | None


def measure(
    outcomes: Iterable[Outcome],
    targets: Tensor,  # [T] int64
    experiment: str,
    seed: int,
    prior_precision: float,
    calibration: bool = False,
) -> Iterator[Record]:
    """Turn the outcomes of one seed into records, as they come.

    Args:
        outcomes: those of a strategy in the order of its curve.
        targets: labels of the test rows, [T].
        experiment: name of it; all but "updating" are curves, which have an area.
        seed: of the outcomes.
        prior_precision: of the outcomes.
        calibration: measure the calibration error too (needs torchmetrics).
    """
    curves: dict[str, list[float]] = {}
    for outcome in outcomes:
        log_p = outcome.log_probabilities
        accuracy = float((log_p.argmax(1) == targets).double().mean())
        curve = curves.setdefault(outcome.strategy, [])
        curve.append(accuracy)
        yield Record(
            experiment,
            seed,
            outcome.strategy,
            prior_precision,
            outcome.labels,
            accuracy,
            nll=float(torch.nn.functional.nll_loss(log_p, targets)),
            brier=brier(log_p.exp(), targets),
            ece=calibration_error(log_p.exp(), targets) if calibration else None,
            aulc=None if experiment == "updating" else sum(curve) / len(curve),
            seconds=outcome.seconds,
        )


def brier(
    probabilities: Tensor,  # [T, C]
    targets: Tensor,  # [T] int64
) -> float:
    """Mean of sum_k (p_k - [k = y])^2, in [0, 2]."""
    at_target = probabilities.gather(1, targets[:, None])[:, 0]
    return float((probabilities.square().sum(1) - 2.0 * at_target + 1.0).mean())


def calibration_error(
    probabilities: Tensor,  # [T, C]
    targets: Tensor,  # [T] int64
) -> float:
    """Expected calibration error of the largest probability, 15 equal bins (needs torchmetrics)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    n_classes = probabilities.shape[1]
    return float(multiclass_calibration_error(probabilities, targets, num_classes=n_classes, n_bins=_BINS))
