"""What a study measures: one record per model, and its mean and standard error over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Record(NamedTuple):
    """One model, measured on the test part; the fields are the columns of the demo's ``results.csv``.

    All measures are of the plugin predictive, or of the probabilities themselves where a strategy has no weights.
    """

    experiment: str  # "updating", "active_learning" or "look_ahead"
    seed: int
    strategy: str
    prior_precision: float
    labels: int  # that the model has been given
    accuracy: float  # share of test rows
    nll: float  # negative log-likelihood of the test labels, mean per row, nats
    brier: float  # squared distance of the probabilities from the label's, summed over classes, mean per row
    ece: float | None  # expected calibration error, 15 equal bins of the largest probability; None: not measured
    aulc: float | None  # mean accuracy over the curve up to here; None where there is no curve
    seconds: float | None  # to update or refit ("updating"), to choose the batch (the others); None: neither

    @property
    def log_likelihood(self) -> float:
        """Of the test labels, mean per row, nats."""
        return -self.nll


def by_seed(
    records: Sequence[Record], experiment: str, strategy: str, field: str
) -> tuple[list[int], Values]:  # L label counts, [S, L]
    """Arrange one field of one strategy; rows are seeds and columns label counts, both ascending.

    Label counts where the field holds None are left out. The records must be of one prior precision.

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
    """Mean over seeds and its standard error (zero for a single seed)."""
    count = len(values)
    spread = values.std(axis=0, ddof=1) if count > 1 else np.zeros(values.shape[1:])
    return np.asarray(values.mean(axis=0)), np.asarray(spread / np.sqrt(count))
