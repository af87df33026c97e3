"""Measure test probabilities: accuracy, likelihood, Brier score and calibration error."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.study.records import Record

_BINS = 15  # of the calibration error, as in Guo et al., arXiv 1706.04599


class Outcome(NamedTuple):
    """Predictions of a strategy after some number of labels."""

    strategy: str
    labels: int
    log_probabilities: Tensor  # [T, C] float64, of the test rows
    choice_seconds: float | None  # see ``Record``
    learning_seconds: float | None


def measure(
    outcomes: Iterable[Outcome],
    targets: Tensor,  # [T] int64
    experiment: str,
    seed: int,
    prior_precision: float,
    calibration: bool,
) -> Iterator[Record]:
    """Measure the outcomes of one seed, one after another.

    Args:
        outcomes: those of each strategy in ascending order of labels.
        targets: labels of the test rows, [T].
        experiment: its name. All experiments but "updating" have curves, whose area is measured.
        seed: of the outcomes.
        prior_precision: of the outcomes.
        calibration: whether to measure the calibration error (needs torchmetrics).
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
            choice_seconds=outcome.choice_seconds,
            learning_seconds=outcome.learning_seconds,
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
    """Expected calibration error of the largest probability in 15 equal bins (needs torchmetrics)."""
    from torchmetrics.functional.classification import multiclass_calibration_error

    n_classes = probabilities.shape[1]
    return float(multiclass_calibration_error(probabilities, targets, num_classes=n_classes, n_bins=_BINS))
