"""Selection with an annotator: one question, one update, the next question."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.references import References, Uncertainty
from lapal_ext.acquisition.registry import (
    check_acquisition,
    check_coverage,
    check_memory,
    choose_seed,
    default_acquisition,
    make_scorer,
)
from lapal_ext.acquisition.scorer import Scorer, check_utilities
from lapal_ext.acquisition.spec import Setting
from lapal_ext.entries import entry, outside_inference_mode
from lapal_ext.pool.checksum import PoolChecksum
from lapal_ext.pool.feature_files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.arguments import check_features
from lapal_ext.posterior.class_names import class_numbers
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, check_posterior
from lapal_ext.rules import check_rule
from lapal_ext.validation.arrays import Array, Labels, Rows
from lapal_ext.validation.scalars import check_integer
from lapal_ext.validation.tensors import as_dense, as_labels, check_distinct, check_labels, shape_text

_KERNEL_MEMORY = 1 << 29  # bytes for kernel values, which every answer needs again
_SKIPPED = -1  # label of a skipped row in a state dict
_VECTORS = ("rows", "labels", "events")
_STATE = (*_VECTORS, "seed", "pool")

_Event = tuple[Tensor, Tensor | None]
"""Picks and their labels, or None if they were skipped."""


class _Progress(NamedTuple):
    """All that changes in a selector, replaced as a whole, so that an interrupted call changes nothing.

    The events are the state, and the scorer follows from them. A call that changes the scorer in place first takes it
    out, and puts it back together with the new events. If the call does not get there, the next one makes the scorer
    again from the events.
    """

    events: tuple[_Event, ...]
    seed: int
    scorer: Scorer | None  # has absorbed the events; None while a call changes it, and after one that raised
    asked: Tensor | None = None  # the picks that ``ask`` returned, which are taken in ``scorer`` if there is one


@entry
class SequentialSelector:
    """Asks for labels and absorbs each before it asks again.

    Every method changes all of its state or none. After any exception, Ctrl-C included, the answers, the posterior and
    the next question are those from before the call, and the same call may be made again.

    Args:
        posterior: a fitted model; not modified.
        pool: features of the unlabelled rows, [N, D]; an array or a file is not copied, as in ``select_batch``.
        acquisition: as in ``select_batch``: ``uherding`` by default if ``labelled`` is given, else ``margin``.
        step: ``line_search`` or ``newton``.
        gamma: trust in the labels, >= 0.
        link: ``plugin`` or ``mean_field``; for ``bald`` also ``mc``.
        candidates: the rows that may be asked for, integers [K]; all by default.
        generator: for an acquisition that draws, such as ``random`` or ``badge``. The constructor takes one number from
            it as the seed. All questions depend on the seed and the answers alone, so ``undo`` returns to the same
            question.
        labelled: features of the rows that already have labels, [L, D], as in ``select_batch``.
        memory: bytes that the logits of the pool may take, as in ``select_batch``; for ``uherding`` and ``maxherding``
            the bytes for kernel values, 512 MiB by default. An answer takes tens of milliseconds where those of all
            rows and references fit, as they do for 10,000 of each.
        references: as in ``select_batch``.
        uncertainty: as in ``select_batch``.

    Example:
        >>> selector = SequentialSelector(posterior, pool)
        >>> row = selector.ask()
        >>> selector.tell(row, 3)
    """

    @outside_inference_mode
    def __init__(
        self,
        posterior: LastLayerLaplace,
        pool: Features,  # [N, D]
        acquisition: str | Acquisition | None = None,
        step: str = "line_search",
        gamma: float = 1.0,
        link: str = "plugin",
        candidates: Rows | None = None,  # [K]
        generator: torch.Generator | None = None,
        labelled: Array | None = None,  # [L, D]
        memory: float | None = None,
        references: References = None,  # an integer or [E] int64
        uncertainty: Uncertainty = None,  # a name or [N]
    ) -> None:
        check_posterior(posterior)
        self._rule = check_rule(step, gamma, posterior.curvature)
        acquisition = default_acquisition(acquisition, labelled)
        self._link = check_acquisition(acquisition, link, generator)
        self._acquisition = acquisition
        self._initial = posterior.clone()
        self._pool = Pool(self._initial, pool, candidates)
        if labelled is not None:
            labelled = check_features(posterior, labelled, name="labelled").detach().clone()
        self._labelled = labelled
        self._memory = check_memory(acquisition, posterior, self._pool, memory)
        references, uncertainty = check_coverage(acquisition, self._pool, references, uncertainty)
        # Callers may reuse the memory of their arguments.
        self._references = references.clone() if isinstance(references, Tensor) else references
        self._uncertainty = uncertainty.clone() if isinstance(uncertainty, Tensor) else uncertainty
        self._checksum: PoolChecksum | None = None
        seed = choose_seed(acquisition, self._link, len(self._pool), generator, references)
        self._progress = _Progress((), seed, self._replayed((), seed))

    @outside_inference_mode
    @torch.no_grad()
    def ask(self, n: int = 1) -> Tensor:  # [n] int64
        """Return the ``n`` rows that are best to label now, best first. A repeated call returns the same rows.

        All of them are the best under the same model; ``select_batch`` builds a batch with assumed labels instead.

        Raises:
            ValueError: fewer than ``n`` rows are left, or the acquisition returned NaN.
        """
        left = len(self._pool) - len(self._closed())
        if left == 0:
            raise ValueError(
                f"no row is left to ask for: all {len(self._pool)} have a label or are skipped; undo() takes the last "
                "one back"
            )
        n = check_integer("n", n, at_least=1, at_most=left, limit="the rows that are left")
        picks = self._progress.asked
        if picks is None or len(picks) != n:
            events, seed, *_ = self._progress
            scorer = self._take_scorer()
            picks, utilities = scorer.pick(n)
            check_utilities(utilities, "acquisition")
            self._progress = _Progress(events, seed, scorer, picks)
        return self._pool.to_rows(picks).clone()

    @outside_inference_mode
    @torch.no_grad()
    def tell(self, indices: int | Rows, labels: int | str | Labels) -> None:
        """Absorb labels, in order. The rows need not be those that ``ask`` returned.

        Args:
            indices: a row of the pool, or integers [k]: a tensor, an array or a list.
            labels: its label in [0, C), or [k]. Where the posterior has ``class_names``, also their names.

        Raises:
            ValueError: a row already has a label or is not in the pool, or a label is not a class.
            NotPSDError: the covariance is not positive semi-definite; nothing is changed.
        """
        picks = self._as_picks("indices", indices)
        values = self._as_labels(labels, len(picks))
        self._check_untold("indices", picks, self._progress.events)
        self._add((picks, values))

    @outside_inference_mode
    @torch.no_grad()
    def skip(self, indices: int | Rows) -> None:
        """Do not ask for these rows again; ``tell`` still accepts their labels."""
        self._add((self._as_picks("indices", indices), None))

    @outside_inference_mode
    @torch.no_grad()
    def undo(self) -> Tensor:  # [k] int64
        """Undo the last ``tell`` or ``skip`` and return its rows.

        Raises:
            ValueError: there is nothing to undo.
        """
        events, seed, *_ = self._progress
        if not events:
            raise ValueError("there is nothing to undo")
        rows = self._pool.to_rows(events[-1][0]).clone()
        self._progress = _Progress(events[:-1], seed, self._replayed(events[:-1], seed))
        return rows

    @property
    @entry
    @outside_inference_mode
    def posterior(self) -> LastLayerLaplace:
        """A new posterior that has absorbed every label so far."""
        told = [(picks, labels) for picks, labels in self._progress.events if labels is not None]
        if not told:
            return self._initial.clone()
        picks, labels = (torch.cat(parts) for parts in zip(*told, strict=True))
        return self._initial.condition_on(self._pool.raw(picks), labels, self._rule.step, self._rule.gamma)

    def __repr__(self) -> str:
        """The numbers of answers and of rows that are left; never a matrix."""
        name = self._acquisition if isinstance(self._acquisition, str) else "a callable"
        told = sum(len(picks) for picks, labels in self._progress.events if labels is not None)
        skipped = sum(len(picks) for picks, labels in self._progress.events if labels is None)
        return (
            f"SequentialSelector({name!r} over {len(self._pool)} rows, {told} labelled, {skipped} skipped, "
            f"{len(self._pool) - len(self._closed())} left; begun with {self._initial})"
        )

    @outside_inference_mode
    def state_dict(self) -> dict[str, Any]:
        """All answers: ``rows``, ``labels`` (-1 if skipped) and ``events``, int64 [T]; ``seed`` []; ``pool`` [5].

        The posterior and the pool are not part of it: make a new selector with them and call ``load_state_dict``. Of
        the pool it holds a checksum: number of rows, D, dtype, and the values of 1,024 rows, evenly spread from the
        first to the last, or of all rows if they are no more.
        """
        told, seed, *_ = self._progress
        rows = [self._pool.to_rows(picks) for picks, _ in told]
        labels = [torch.full_like(picks, _SKIPPED) if given is None else given for picks, given in told]
        events = [torch.full_like(picks, number) for number, (picks, _) in enumerate(told)]
        empty = [torch.zeros(0, dtype=torch.int64, device=self._pool.storage.device)]
        parts = {"rows": rows, "labels": labels, "events": events}
        return {
            **{name: torch.cat(part or empty) for name, part in parts.items()},
            "seed": torch.tensor(seed, device="cpu"),
            "pool": self._pool_checksum().as_tensor(),
        }

    @outside_inference_mode
    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay the answers of a ``state_dict``. The next question is the same as it was there.

        Raises:
            KeyError, TypeError, ValueError: not a state of a selector over this pool, in this order; nothing is
                changed. The message says what is different in the pool.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a dict, got {type(state).__name__}")
        if missing := [name for name in _STATE if name not in state]:
            raise KeyError(f"state must hold {', '.join(_STATE)}, {', '.join(missing)} is missing")
        rows, labels, events = (
            as_labels(f"state[{name!r}]", state[name], self._pool.storage.device) for name in _VECTORS
        )
        seed = check_integer("state['seed']", state["seed"], at_least=0)
        self._check_pool(state["pool"])
        if not rows.shape == labels.shape == events.shape or rows.dim() != 1:
            raise ValueError(
                f"state must hold vectors of one length, got {shape_text(rows.shape)} rows, "
                f"{shape_text(labels.shape)} labels and {shape_text(events.shape)} events"
            )
        told: tuple[_Event, ...] = ()
        for number in events.unique():
            belongs = events == number
            picks, given = self._as_picks("state['rows']", rows[belongs]), labels[belongs]
            skipped = bool((given == _SKIPPED).all())
            if not skipped:
                check_labels("state['labels']", given, self._initial.num_classes)
                self._check_untold("state['rows']", picks, told)
            told = (*told, (picks, None if skipped else given))
        self._progress = _Progress(told, seed, self._replayed(told, seed))

    def _pool_checksum(self) -> PoolChecksum:
        if self._checksum is None:
            self._checksum = self._pool.checksum()
        return self._checksum

    def _check_pool(self, numbers: object) -> None:
        vector = as_dense("state['pool']", numbers)
        try:
            saved = PoolChecksum.from_numbers(as_labels("state['pool']", vector, vector.device).flatten().tolist())
        except ValueError as error:
            raise ValueError(f"state['pool'] must be what state_dict() returned: {error}") from None
        if difference := saved.difference(self._pool_checksum()):
            raise ValueError(
                f"pool {difference}, so that the rows of this state are others: make the selector with the pool that "
                "the state was saved with, in the same order, or begin anew with this one"
            )

    def _replayed(self, events: tuple[_Event, ...], seed: int) -> Scorer:
        """A new scorer that has absorbed these events."""
        setting = Setting(
            self._initial,
            self._pool,
            self._rule,
            self._link,
            self._labelled,
            seed,
            self._references,
            self._uncertainty,
            self._memory,
            _KERNEL_MEMORY if self._memory is None else self._memory,
        )
        scorer = make_scorer(self._acquisition, setting)
        for event in events:
            _absorb(scorer, event)
        return scorer

    def _take_scorer(self) -> Scorer:
        """Return the scorer, with no row taken that was asked for, and leave the selector without it."""
        events, seed, scorer, asked = self._progress
        self._progress = _Progress(events, seed, None, asked)
        if scorer is None:
            return self._replayed(events, seed)
        if asked is not None:
            scorer.release(asked)
        return scorer

    def _add(self, event: _Event) -> None:
        events, seed, *_ = self._progress
        scorer = self._take_scorer()
        _absorb(scorer, event)
        self._progress = _Progress((*events, event), seed, scorer)

    def _closed(self) -> set[int]:
        return {pick for picks, _ in self._progress.events for pick in picks.tolist()}

    def _check_untold(self, name: str, picks: Tensor, events: tuple[_Event, ...]) -> None:
        told = {pick for rows, given in events if given is not None for pick in rows.tolist()}
        for row, pick in zip(self._pool.to_rows(picks).tolist(), picks.tolist(), strict=True):
            if pick in told:
                raise ValueError(f"{name} must be without a label so far, got {row} again; undo() takes one back")

    def _as_picks(self, name: str, indices: int | Rows) -> Tensor:
        rows = self._as_vector(name, indices, rows=True)
        if len(rows) == 0:
            raise ValueError(f"{name} must hold at least one row, got none")
        check_distinct(name, rows)
        return self._pool.to_picks(rows, name)

    def _as_labels(self, labels: int | str | Labels, count: int) -> Tensor:
        values = self._as_vector("labels", class_numbers("labels", labels, self._initial.class_names))
        if len(values) != count:
            raise ValueError(f"labels must hold one label for each of {count} indices, got {len(values)}")
        check_labels("labels", values, self._initial.num_classes)
        return values

    def _as_vector(self, name: str, value: object, *, rows: bool = False) -> Tensor:  # [k] int64
        device = self._pool.storage.device
        if isinstance(value, str) or not hasattr(value, "__len__"):
            return torch.tensor([check_integer(name, value, at_least=0)], device=device)
        numbers = as_labels(name, value, device, rows=rows)
        if numbers.dim() > 1:
            raise ValueError(f"{name} must be one integer or have shape (k,), got {shape_text(numbers.shape)}")
        return numbers.reshape(-1).clone()  # events are kept, callers may reuse the buffer


def _absorb(scorer: Scorer, event: _Event) -> None:
    picks, labels = event
    if labels is not None:
        scorer.absorb(picks, labels)
    scorer.withhold(picks)
