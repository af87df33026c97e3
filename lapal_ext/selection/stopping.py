"""When to stop labelling: the accuracy to expect, and whether the last labels still changed anything."""

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lapal_ext.entries import entry
from lapal_ext.pool.feature_files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.pool.sharding import Ranks
from lapal_ext.posterior.calibration import Calibration
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.validation.arrays import Rows
from lapal_ext.validation.scalars import check_number
from lapal_ext.validation.tensors import check_overflow

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_NORMAL = 1.96  # standard deviations that hold 95 % of a normal distribution
_SELECTED = 0.025  # standard deviation of what labels of chosen rows, not random ones, say about the others
CHANGED = 0.02  # share of rows; when fewer change their class, more labels have stopped paying
LAST = 0.2  # share of the labels that are looked at for it


class ExpectedAccuracy(NamedTuple):
    """A share of rows in [0, 1], and a 95 % interval around it."""

    value: float
    low: float
    high: float


@entry
@torch.no_grad()
def expected_accuracy(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    calibration: Calibration,
    exclude: Rows | None = None,  # [X]
    group: "ProcessGroup | None" = None,
) -> ExpectedAccuracy:
    """Return the share of the pool's rows that the model labels rightly, as far as its calibration goes.

    It is the mean over rows of the highest probability of softmax(z / T). The interval has the standard error of the
    calibration, and 2.5 points more (added in squares), since the labels are of chosen rows: in experiments on four
    datasets the error that held-out labels do not show was of that size (``python -m benchmarks.stopping``).

    Args:
        posterior: the model with all labels.
        pool: features, [N, D], as in ``select_batch``.
        calibration: by ``posterior.calibration.calibrate`` for the same labels.
        exclude: rows that do not count, such as those that have labels, integers [X].
        group: a process group that shares the pool, as in ``select_batch``.

    Raises:
        ValueError, TypeError: an argument is invalid; or no row is left.

    O(N D C).
    """
    ranks = Ranks(group)
    with ranks.together():
        rows = Pool(posterior, pool, None, ranks)
        temperature, error = _checked(calibration)
        counted = torch.ones(len(rows), dtype=torch.bool, device=rows.storage.device)
        if exclude is not None:
            counted[rows.shard.here(rows.to_picks(rows.check_rows("exclude", exclude), "exclude"))] = False
        total = counted.new_zeros(2, dtype=torch.float64)  # sum of probabilities, number of rows
        for tile, x in rows.standardized_tiles():
            logits = x @ posterior.mean.T / temperature
            check_overflow("pool", logits)
            highest = logits.softmax(1).amax(1)
            total += torch.stack([highest[counted[tile]].double().sum(), counted[tile].sum().double()])
        total = rows.shard.add(total)
        if float(total[1]) == 0.0:
            why = "exclude has all rows of pool" if rows.size else "pool has no rows"
            raise ValueError(f"no row is left: {why}")
        value = float(total[0] / total[1])
    width = _NORMAL * math.hypot(error, _SELECTED)
    return ExpectedAccuracy(value, max(0.0, value - width), min(1.0, value + width))


@entry
@torch.no_grad()
def changed_classes(
    before: LastLayerLaplace,
    after: LastLayerLaplace,
    pool: Features,  # [N, D]
    group: "ProcessGroup | None" = None,
) -> float:
    """Return the share of the pool's rows to which two models give different classes, in [0, 1].

    If ``before`` lacks the last fifth of the labels of ``after`` and no more than 2 % change, more labels have stopped
    paying. In experiments with 1,500 labels on four datasets this was so from 650 to 1,060 labels on, or never, and all
    later labels together brought 0.8 points of accuracy on average, at most 1.7 (``python -m benchmarks.stopping``).

    Args:
        before: a model.
        after: another one, of the same classes; classes that ``add_class`` has added since may come after them.
        pool: features, [N, D], as in ``select_batch``.
        group: a process group that shares the pool, as in ``select_batch``.

    Raises:
        ValueError, TypeError: an argument is invalid.

    Source: Bloodgood and Vijay-Shanker (2009), "A Method for Stopping Active Learning Based on Stabilizing
    Predictions", arXiv 1409.5165; the share of labels and the limit are ours. O(N D C).
    """
    ranks = Ranks(group)
    with ranks.together():
        _check_comparable(before, after)
        earlier, later = (Pool(model, pool, None, ranks) for model in (before, after))
        changed = (_classes(earlier, before) != _classes(later, after)).sum().double()
        return float(later.shard.add(changed)) / max(1, later.size)


def _classes(pool: Pool, posterior: LastLayerLaplace) -> Tensor:  # [n] int64
    classes = torch.empty(len(pool), dtype=torch.int64, device=pool.storage.device)
    for rows, x in pool.standardized_tiles():
        logits = x @ posterior.mean.T
        check_overflow("pool", logits)
        classes[rows] = logits.argmax(1)
    return classes


def _checked(calibration: object) -> tuple[float, float]:
    """Temperature and error of a calibration, or a typed error."""
    if not isinstance(calibration, Calibration):
        raise TypeError(f"calibration must be what calibrate() returned, got {type(calibration).__name__}")
    error = calibration.error
    if error != math.inf:  # with too few rows
        error = check_number("calibration.error", error, at_least=0.0)
    return check_number("calibration.temperature", calibration.temperature, above=0.0), error


def _check_comparable(before: LastLayerLaplace, after: LastLayerLaplace) -> None:
    """Raise a typed error unless a class, or a column of the features, has the same number in both models."""
    for name, model in (("before", before), ("after", after)):
        if not isinstance(model, LastLayerLaplace):
            raise TypeError(f"{name} must be a LastLayerLaplace, got {type(model).__name__}")
    if after.num_features != before.num_features:
        raise ValueError(f"after must have {before.num_features} features like before, got {after.num_features}")
    if after.num_classes < before.num_classes:
        raise ValueError(f"after must have the {before.num_classes} classes of before, got {after.num_classes}")
    if before.class_names is None or after.class_names is None:
        return
    for old, new in zip(before.class_names, after.class_names, strict=False):
        if old != new:
            raise ValueError(
                f"after must have the classes of before in the same order, got {new!r} in place of {old!r}"
            )
