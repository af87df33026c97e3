"""A pool that is labelled from nothing: its rows in the order in which the strategies choose them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.study.feature_file import FeatureSet

_POOL, _REFERENCES = 2500, 1500
_START, _BATCH = 20, 10


class LabelledRows(NamedTuple):
    """The pool, and the rows of it that have labels."""

    prior: LastLayerLaplace
    pool: Tensor  # [N, D]
    labels: Tensor  # [N], of all rows
    rows: Tensor  # [n] int64, in the order of the picks

    def model(self, count: int | None = None) -> LastLayerLaplace:
        """The model of the first ``count`` of them, or of all."""
        rows = self.rows[:count]
        return self.prior.condition_on(self.pool[rows], self.labels[rows], "joint")


def labelled_rows(data: FeatureSet, counts: Iterable[int], seed: int) -> Iterator[LabelledRows]:
    """Yield the state at each of these numbers of labels, in ascending order.

    The pool has 2,500 rows. Maxherding picks the first C / 2 rows, at least 20; then uherding picks batches of C / 4,
    at least 10.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = data.num_classes
    kept = torch.randperm(len(data.train.targets), generator=generator)[:_POOL]
    pool, labels = data.train.features[kept], data.train.targets[kept]
    prior = LastLayerLaplace.untrained(pool, classes)
    rows = select_batch(prior, pool, max(_START, classes // 2), "maxherding", generator=generator).indices
    for count in counts:
        while len(rows) < count:
            model = LabelledRows(prior, pool, labels, rows).model()
            size = min(max(_BATCH, classes // 4), count - len(rows))
            known = pool[rows]
            batch = select_batch(
                model, pool, size, labelled=known, exclude=rows, references=_REFERENCES, generator=generator
            )
            rows = torch.cat([rows, batch.indices])
        yield LabelledRows(prior, pool, labels, rows[:count])
