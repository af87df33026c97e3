"""The model of ``lapal-ext select``: fitted to all labels that there are, or the prior alone."""

import argparse
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select.answers import Answers, Line, first_of_row
from lapal_ext.cli.select.inputs import read_head, read_labels
from lapal_ext.pool.checksum import spread
from lapal_ext.pool.feature_files import map_file
from lapal_ext.pool.sharding import Ranks, Shard
from lapal_ext.posterior.calibration import Calibration, calibrate
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

_STANDARDISING = 10_000  # rows of the pool that give the centre and the scale where no row has a label
_COVERING = "maxherding"
LEAST_CLASSES = 2  # of a model
_LISTED = 5  # classes without an answer that a message names


class Start:
    """What is known before the answers of the label file, and the model and the strategy that follow from both.

    With several processes, all of them call ``features_of``, ``answers`` and ``model``.

    Args:
        options: of the command.
        pool: the rows of the pool in this process, [n, D].
        shard: how the rows are distributed over processes.
        ranks: the processes; only this one by default.

    Attributes:
        pool_rows: number of rows of the whole pool.
        classes: those of ``--classes`` or ``--labels``; the label file may add some to them afterwards.

    Raises:
        CommandError: a file is invalid.
    """

    def __init__(self, options: argparse.Namespace, pool: Tensor, shard: Shard, ranks: Ranks | None = None) -> None:
        if shard.total == 0:
            raise CommandError(f"--pool has no row: {options.pool} has the shape {list(pool.shape)}")
        if (options.features is None) != (options.labels is None):
            missing, given = ("--labels", "--features") if options.labels is None else ("--features", "--labels")
            raise CommandError(f"{given} needs {missing} too; leave out both if nothing has a label yet")
        if options.head is not None and options.features is None:
            raise CommandError("--head needs --features and --labels, the rows that the layer was trained on")
        if options.acquisition not in ACQUISITIONS:  # which may be needed much later
            names = ", ".join(ACQUISITIONS)
            raise CommandError(f"--acquisition must be one of {names}, got {options.acquisition!r}")
        self._options, self._pool, self._shard = options, pool, shard
        self.pool_rows = shard.total
        self._ranks = Ranks() if ranks is None else ranks
        labels, self.classes = read_labels(options)
        self._declared = len(self.classes)
        if options.head is not None and self._declared < LEAST_CLASSES:
            raise CommandError(f"--head needs --classes of at least {LEAST_CLASSES} classes, got {self._declared}")
        self._dtype = torch.promote_types(pool.dtype, torch.float32)
        self._given: Answers | None = None  # the rows of --features and --labels
        if labels is None:
            rows = spread(shard.total, _STANDARDISING)
            self._sample = self.features_of(rows)
            bad = self._sample.isfinite().all(1).logical_not().nonzero()
            if len(bad) > 0:
                raise CommandError(f"--pool must be finite, got NaN or infinity in row {rows[int(bad[0, 0])]}")
            return
        self._sample = features = map_file("--features", options.features).to(self._dtype)
        if features.shape[1] != pool.shape[1]:
            raise CommandError(
                f"--features must have as many columns as --pool, got {features.shape[1]} and {pool.shape[1]}"
            )
        if len(labels) != len(features):
            raise CommandError(f"--labels must hold one label for each of {len(features)} features, got {len(labels)}")
        every = torch.ones(len(labels), dtype=torch.bool, device="cpu")
        self._given = Answers(features, labels, every.double(), every)

    def features_of(self, rows: Sequence[int]) -> Tensor:  # [k, D]
        """Features of rows of the whole pool, in the dtype of the model."""
        return self._shard.gather(self._pool, torch.tensor(rows, dtype=torch.int64, device="cpu")).to(self._dtype)

    def answers(self, lines: Iterable[Line]) -> Answers:
        """The answers in these lines, without the rows of ``--features``."""
        counted = [line for line in lines if line.counts]
        return Answers(
            self.features_of([line.row for line in counted]),
            torch.tensor([line.label for line in counted], dtype=torch.int64, device="cpu"),
            torch.tensor([line.trust for line in counted], dtype=torch.float64, device="cpu"),
            torch.tensor(first_of_row(counted), dtype=torch.bool, device="cpu"),
        )

    def labelled(self, answers: Answers) -> Answers:
        """The rows of ``--features`` and ``--labels``, and behind them these answers."""
        if self._given is None:
            return answers
        return Answers(*(torch.cat(parts) for parts in zip(self._given, answers, strict=True)))

    def covered(self, rows: Sequence[int]) -> Tensor:  # [L + k, D]
        """Features of the rows that further picks keep away from: those of ``--features``, and these of the pool."""
        features = self.features_of(rows)
        return features if self._given is None else torch.cat([self._given.features, features])

    def is_taught(self, lines: Iterable[Line]) -> bool:
        """Whether a model with the answers in these lines has any label."""
        return self._given is not None or any(line.counts for line in lines)

    def model(self, answers: Answers) -> LastLayerLaplace:
        """The model fitted to all labels, with these answers among them; the same numbers in all processes.

        Without other labels, the mode of all answers and the prior is that fit, standardised by the pool. A layer of
        ``--head`` is updated: its training rows may be many more than those that are given.
        """
        model = self._fitted(answers)
        for buffer in model.buffers():  # processors of different kinds give different last digits
            buffer.copy_(self._ranks.from_first(buffer.clone, buffer))
        return model

    def _fitted(self, answers: Answers) -> LastLayerLaplace:
        features, labels, trust, _ = answers
        if self._options.head is not None:
            return self._around_head().condition_on(features, labels, gamma=trust)
        if self._given is None:
            return self._prior(self._names()).condition_on(features, labels, "joint", trust)
        features, labels, trust, _ = self.labelled(answers)
        return LastLayerLaplace.fit_map(
            features,
            labels,
            self._count,
            self._options.prior_precision,
            class_names=self._names(),
            weights=None if bool((trust == 1.0).all()) else trust,
        )

    def _around_head(self) -> LastLayerLaplace:
        """The trained layer, with the classes that answers have added."""
        assert self._given is not None
        head = read_head(self._options.head, self._declared).to(self._dtype)
        names = self._names()
        model = LastLayerLaplace.from_linear(
            head,
            self._given.features,
            self._options.prior_precision,
            standardize=True,
            class_names=None if names is None else names[: self._declared],
        )
        for name in self.classes.names[self._declared :]:
            model.add_class(None if names is None else name)
        return model

    def _prior(self, names: tuple[str, ...] | None = None) -> LastLayerLaplace:
        return LastLayerLaplace.untrained(self._sample, self._count, self._options.prior_precision, class_names=names)

    @property
    def _count(self) -> int:
        """Number of classes of a model, which are two or more, though one alone may have a name."""
        return max(LEAST_CLASSES, len(self.classes))

    def _names(self) -> tuple[str, ...] | None:
        return self.classes.model_names() if len(self.classes) == self._count else None

    def calibration(self, answers: Answers) -> Calibration | None:
        """The calibration of the probabilities of ``model``; None around a layer of ``--head``.

        The labels that the layer was trained on cannot be held out from it. A row with several answers has one of them
        here, so that no model has an answer of the row that it is asked about.
        """
        if self._options.head is not None:
            return None
        features, labels, _, first = self.labelled(answers)
        return calibrate(self._prior(), features[first], labels[first])

    def acquisition(self, lines: Iterable[Line]) -> str:
        """The strategy after the answers in these lines."""
        if self._given is not None or self._is_complete(_answered(lines)):
            return str(self._options.acquisition)
        return _COVERING

    def progress(self, lines: Iterable[Line]) -> str | None:
        """Which classes still lack an answer; None if that changes nothing."""
        answered = _answered(lines)
        if self._given is not None or self._is_complete(answered):
            return None
        until = "--classes-complete goes on to the rows that the model is unsure about."
        if not self._declared:
            found = [name for number, name in enumerate(self.classes.names) if number in answered]
            names = f": {', '.join(found)}" if found else ""
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


def _answered(lines: Iterable[Line]) -> set[int]:
    """The classes of answers that count."""
    return {line.label for line in lines if line.label is not None and line.counts}
