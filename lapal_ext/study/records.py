"""Records, one for each model that was measured, and their mean and standard error over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Record(NamedTuple):
    """Measurements of one model on the test rows.

    They are of the plugin predictive. For a strategy without weights they are of its probabilities.
    """

    experiment: str  # "updating", "active_learning" or "look_ahead"
    seed: int
    strategy: str
    prior_precision: float
    labels: int  # number of labels that the model has seen
    accuracy: float  # in [0, 1]
    nll: float  # negative log-likelihood of the test labels, mean per row, nats
    brier: float  # squared error of the probabilities, summed over classes, mean per row
    ece: float | None  # expected calibration error of the largest probability, 15 equal bins; None: not measured
    aulc: float | None  # mean accuracy of the curve so far; None: there is no curve
    choice_seconds: float | None  # of the choice of a batch; None: no batch was chosen
    learning_seconds: float | None  # of the update or the refit, without prediction; None for the first fit


def by_seed(
    records: Sequence[Record], experiment: str, strategy: str, field: str
) -> tuple[list[int], Values]:  # L label counts, [S, L]
    """Arrange one field of one strategy: rows are seeds and columns are label counts, both ascending.

    Label counts are left out where the field is None. All records must have the same prior precision.

    Raises:
        ValueError: a seed lacks a label count that another has.
    """
    cells = {
        (record.seed, record.labels): getattr(record, field)
        for record in records
        if record.experiment == experiment and record.strategy == strategy
    }
    cells = {key: value for key, value in cells.items() if value is not None}
    seeds, labels = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    if len(cells) != len(seeds) * len(labels):
        raise ValueError(f"records of {experiment}/{strategy} must have every label count for every seed")
    return labels, np.array([[cells[seed, count] for count in labels] for seed in seeds], dtype=np.float64)


def mean_and_error(
    values: Values,  # [S, ...]
) -> tuple[Values, Values]:
    """Mean over seeds and its standard error, which is zero for a single seed."""
    count = len(values)
    spread = values.std(axis=0, ddof=1) if count > 1 else np.zeros(values.shape[1:])
    return np.asarray(values.mean(axis=0)), np.asarray(spread / np.sqrt(count))
