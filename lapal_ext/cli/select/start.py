"""The model that ``lapal-ext select`` starts from: fitted to labelled features, or the prior alone."""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select.inputs import read_head, read_labels
from lapal_ext.pool.checksum import spread
from lapal_ext.pool.feature_files import map_file
from lapal_ext.pool.sharding import Shard
from lapal_ext.posterior.calibration import fit_temperature
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

_STANDARDISING = 10_000  # rows of the pool that give the centre and the scale where no row has a label
_COVERING = "maxherding"
_LEAST_CLASSES = 2  # of a model
_LISTED = 5  # classes without an answer that a message names


class Start:
    """The model before the answers of the label file, and what follows from them.

    Args:
        options: of the command.
        pool: the rows of the pool in this process, [n, D].
        shard: how the rows are distributed over processes.

    Attributes:
        classes: those of ``--classes`` or ``--labels``; the label file may add some to them afterwards.
        features: with labels before the first answer, [L, D].

    Raises:
        CommandError: a file is invalid.
    """

    def __init__(self, options: argparse.Namespace, pool: Tensor, shard: Shard) -> None:
        if shard.total == 0:
            raise CommandError(f"--pool has no row: {options.pool} has the shape {list(pool.shape)}")
        if (options.features is None) != (options.labels is None):
            missing, given = ("--labels", "--features") if options.labels is None else ("--features", "--labels")
            raise CommandError(f"{given} needs {missing} too; leave out both if nothing has a label yet")
        if options.head is not None and options.features is None:
            raise CommandError("--head needs --features and --labels, the rows that the layer was trained on")
        self._options = options
        labels, self.classes = read_labels(options)
        self._declared = len(self.classes)
        dtype = torch.promote_types(pool.dtype, torch.float32)
        if labels is None:
            rows = torch.tensor(spread(shard.total, _STANDARDISING), device="cpu")
            self._sample = shard.gather(pool, rows).to(dtype)
            bad = self._sample.isfinite().all(1).logical_not().nonzero()
            if len(bad) > 0:
                raise CommandError(f"--pool must be finite, got NaN or infinity in row {int(rows[bad[0, 0]])}")
            self.features = self._sample[:0]
        else:
            self.features = map_file("--features", options.features).to(dtype)
            if len(labels) != len(self.features):
                raise CommandError(
                    f"--labels must hold one label for each of {len(self.features)} features, got {len(labels)}"
                )
        self._labels = labels

    @property
    def without_labels(self) -> bool:
        """Whether no row has a label before the first answer."""
        return self._labels is None

    def model(self) -> LastLayerLaplace:
        """The model of the classes so far, before all answers."""
        precision = self._options.prior_precision
        if self._labels is None:
            names = self.classes.model_names() if len(self.classes) >= _LEAST_CLASSES else None
            count = max(_LEAST_CLASSES, len(self.classes))
            return LastLayerLaplace.untrained(self._sample, count, precision, class_names=names)
        names = None if self.classes.are_numbers else tuple(self.classes.names[: self._declared])
        if self._options.head is None:
            model = LastLayerLaplace.fit_map(self.features, self._labels, self._declared, precision, class_names=names)
        else:
            head = read_head(self._options.head, self._declared).to(self.features.dtype)
            model = LastLayerLaplace.from_linear(head, self.features, precision, standardize=True, class_names=names)
        for name in self.classes.names[self._declared :]:
            model.add_class(None if names is None else name)
        return model

    def with_answers(
        self,
        model: LastLayerLaplace,
        features: Tensor,  # [k, D]
        labels: Sequence[int],  # [k]
    ) -> LastLayerLaplace:
        """The model fitted to all labels, with these answers among them.

        Without other labels, the mode of all answers and the prior is that fit, standardised by the pool. A layer of
        ``--head`` is updated: its training rows may be many more than those that are given.
        """
        if not labels:
            return model
        answers = torch.tensor(labels, device="cpu")
        if self._labels is None:
            return model.condition_on(features, answers, "joint")
        if self._options.head is not None:
            return model.condition_on(features, answers)
        return model.refit(torch.cat([self.features, features]), torch.cat([self._labels, answers]))

    def temperature(
        self,
        features: Tensor,  # [k, D]
        labels: Sequence[int],  # [k]
    ) -> float:
        """The temperature of the probabilities of a model with these answers; 1 around a layer of ``--head``."""
        if self._options.head is not None:
            return 1.0
        answers = torch.tensor(labels, dtype=torch.int64, device="cpu")
        if self._labels is not None:
            features, answers = torch.cat([self.features, features]), torch.cat([self._labels, answers])
        count = max(_LEAST_CLASSES, len(self.classes))
        prior = LastLayerLaplace.untrained(
            self._sample if self._labels is None else self.features, count, self._options.prior_precision
        )
        return fit_temperature(prior, features, answers)

    def acquisition(self, labels: Iterable[int]) -> str:
        """The strategy after these answers."""
        if not self.without_labels or self._is_complete(set(labels)):
            return str(self._options.acquisition)
        return _COVERING

    def progress(self, labels: Iterable[int]) -> str | None:
        """Which classes still lack an answer; None if that changes nothing."""
        answered = set(labels)
        if not self.without_labels or self._is_complete(answered):
            return None
        until = "--classes-complete goes on to the rows that the model is unsure about."
        if not self._declared:
            names = f": {', '.join(self.classes.names)}" if self.classes.names else ""
            return f"Classes so far: {len(answered)}{names}. When there are no others, {until}"
        missing = [name for number, name in enumerate(self.classes.names) if number not in answered]
        names = f"{', '.join(missing[:_LISTED])}{', …' if len(missing) > _LISTED else ''}"
        return (
            f"Classes with an answer: {len(answered)} of {len(self.classes)}; without: {names}. Until each has one, "
            f"rows are spread over the pool. If these do not occur, {until}"
        )

    def _is_complete(self, answered: set[int]) -> bool:
        if self._options.classes_complete:
            return True
        return self._declared > 0 and len(answered) >= len(self.classes)
