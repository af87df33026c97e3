"""What a study measures: one record per model, and its mean and standard error over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Record(NamedTuple):
    """One model, measured on the test part; the fields are the columns of ``results.csv``."""

    experiment: str  # "updating" or "active_learning"
    seed: int
    strategy: str
    labels: int  # that the model has been given
    accuracy: float  # share of test rows
    log_likelihood: float  # of the test labels, mean per row, nats, plugin predictive
    seconds: float | None  # to update or refit ("updating"), to choose the batch ("active_learning"); None: neither


def by_seed(
    records: Sequence[Record], experiment: str, strategy: str, field: str
) -> tuple[list[int], Values]:  # L label counts, [S, L]
    """Arrange one field of one strategy; rows are seeds and columns label counts, both ascending.

    Label counts where the field holds None are left out.

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
