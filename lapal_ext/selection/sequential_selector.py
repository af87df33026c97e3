"""Selection with an annotator: one question, one update, the next question."""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

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
from lapal_ext.posterior.arguments import check_features, check_gamma, trust_of
from lapal_ext.posterior.class_names import class_numbers
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, check_posterior, condition_on_rows
from lapal_ext.rules import UpdateRule, check_rule
from lapal_ext.selection.answers import VECTORS, Answers, Event, Forgotten, Record, Skipped, Told, events_of, integers
from lapal_ext.validation.arrays import Array, Labels, Rows
from lapal_ext.validation.scalars import check_flag, check_integer
from lapal_ext.validation.tensors import as_dense, as_labels, check_distinct, check_labels, shape_text

_KERNEL_MEMORY = 1 << 29  # bytes for kernel values, which every answer needs again
_STATE = (*VECTORS, "reserved", "seed", "pool")


class _Progress(NamedTuple):
    """All that changes in a selector, replaced as a whole, so that an interrupted call changes nothing.

    The record is the state, and the scorer follows from it. A call that changes the scorer in place first takes it out,
    and puts it back together with the new record. If the call does not get there, the next one makes the scorer again
    from the record.
    """

    record: Record
    reserved: tuple[int, ...]  # picks that were handed out, in order, whatever has been said about them since
    seed: int
    scorer: Scorer | None  # has absorbed what stands; None while a call changes it, and after one that raised
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
        gamma: trust in the labels, >= 0; ``tell`` takes another one for its own.
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
        >>> selector.tell(row, 2)  # corrects the answer
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
        self._progress = _Progress(Record(), (), seed, None)
        self._progress = self._replayed(self._progress)

    @outside_inference_mode
    @torch.no_grad()
    def ask(self, n: int = 1, *, reserve: bool = False) -> Tensor:  # [n] int64
        """Return the ``n`` rows that are best to label now, best first. A repeated call returns the same rows.

        All of them are the best under the same model; ``select_batch`` builds a batch with assumed labels instead. One
        row works as an index as it is: ``paths[selector.ask()]``.

        Args:
            n: number of rows.
            reserve: hand the rows out to one of several people: they are not asked for again until ``release``.

        Raises:
            ValueError: fewer than ``n`` rows are left, a callable acquisition returned NaN, or the numbers of the pool
                are so large that a utility overflows.
        """
        check_flag("reserve", reserve)
        closed = self._progress.record.closed
        handed_out = set(self._progress.reserved) - closed
        left = len(self._pool) - len(closed) - len(handed_out)
        if left == 0:
            waiting = f", or are reserved ({len(handed_out)}, which release() frees)" if handed_out else ""
            raise ValueError(
                f"no row is left to ask for: all {len(self._pool)} have a label or are skipped{waiting}; undo() takes "
                "the last one back"
            )
        n = check_integer("n", n, at_least=1, at_most=left, limit="the rows that are left")
        picks = self._progress.asked
        if picks is None or len(picks) != n:
            scorer = self._take_scorer()
            picks, utilities = scorer.pick(n)
            check_utilities(utilities, "acquisition", named=isinstance(self._acquisition, str))
            self._progress = self._progress._replace(scorer=scorer, asked=picks)
        after, rows = self._progress, self._pool.to_rows(picks).clone()
        if reserve:  # the picks are taken in the scorer
            after = after._replace(reserved=(*after.reserved, *picks.tolist()), asked=None)
        return self._ended(after, rows)

    @outside_inference_mode
    @torch.no_grad()
    def release(self, indices: int | Rows) -> None:
        """Make reserved rows free again. ``undo`` does not bring a reservation back.

        Raises:
            ValueError: a row is not reserved.
        """
        picks = self._as_picks("indices", indices)
        progress = self._progress
        self._check_each("indices", picks, set(progress.reserved), "be reserved by ask(reserve=True)")
        scorer = self._take_scorer()
        scorer.release(picks.new_tensor([pick for pick in picks.tolist() if pick not in progress.record.closed]))
        kept = _without(progress.reserved, picks)
        self._progress = progress._replace(reserved=kept, scorer=scorer, asked=None)

    @outside_inference_mode
    @torch.no_grad()
    def tell(
        self,
        indices: int | Rows,  # an integer or [k]
        labels: int | str | Labels,  # a label or [k]
        gamma: float | Array | None = None,  # [] or [k]
        annotator: int = 0,
    ) -> None:
        """Absorb labels, in order. The rows need not be those that ``ask`` returned.

        A row that has a label of this annotator is corrected: the result is that of a selector that was never told the
        older label. All other answers are then absorbed again, O(n D^2) and the acquisition's own part for n answers.
        The same label again, with the same trust, changes nothing. Labels of several annotators for one row are as many
        observations; ``disagreements`` lists those that differ.

        Args:
            indices: a row of the pool, or integers [k]: a tensor, an array or a list.
            labels: its label in [0, C), or [k]. Where the posterior has ``class_names``, also their names.
            gamma: trust in these labels, >= 0, a number or [k]; by default that of the selector.
            annotator: who gives them, a number >= 0.

        Raises:
            ValueError: a row is not in the pool, a label is not a class, or ``gamma`` is negative.
            NotPSDError: the covariance is not positive semi-definite; nothing is changed.
        """
        picks = self._as_picks("indices", indices)
        values = self._as_labels(labels, len(picks))
        like = self._initial.mean.new_empty(len(picks), 0, dtype=torch.float64)
        trust = trust_of(check_gamma(self._rule.gamma if gamma is None else gamma, like), like)
        annotator = check_integer("annotator", annotator, at_least=0)
        event = Told(picks, values, trust.to(picks.device), annotator)
        if not self._progress.record.repeats(event):
            self._add(event)

    @outside_inference_mode
    @torch.no_grad()
    def skip(self, indices: int | Rows) -> None:
        """Do not ask for these rows again; ``tell`` still accepts their labels."""
        self._add(Skipped(self._as_picks("indices", indices)))

    @outside_inference_mode
    @torch.no_grad()
    def forget(self, indices: int | Rows, annotator: int | None = None) -> None:
        """Take back what was said about rows, wherever it stands; they may be asked for again.

        The result is that of a selector that was never told it. All other answers are absorbed again, as after a
        correction.

        Args:
            indices: rows as in ``tell``.
            annotator: whose labels to take back; by default those of all annotators, and skips and reservations.

        Raises:
            ValueError: a row has no label of this annotator; or neither label nor skip, if none is given.
        """
        picks = self._as_picks("indices", indices)
        if annotator is not None:
            annotator = check_integer("annotator", annotator, at_least=0)
        self._add(self._checked("indices", Forgotten(picks, annotator), self._progress.record))

    @outside_inference_mode
    @torch.no_grad()
    def undo(self) -> Tensor:  # [k] int64
        """Undo the last ``tell``, ``skip`` or ``forget`` and return its rows.

        Raises:
            ValueError: there is nothing to undo.
        """
        events = self._progress.record.events
        if not events:
            raise ValueError("there is nothing to undo")
        rows = self._pool.to_rows(events[-1].picks).clone()
        return self._ended(self._replayed(self._progress._replace(record=Record(events[:-1]))), rows)

    @property
    @entry
    @outside_inference_mode
    def posterior(self) -> LastLayerLaplace:
        """A new posterior that has absorbed every label that stands."""
        picks, labels, trust, _ = self._progress.record.answers(self._pool.storage)
        if len(picks) == 0:
            return self._initial.clone()
        gamma = float(trust[0]) if bool((trust == trust[0]).all()) else trust.to(self._initial.mean.device)
        rows, features = self._pool.to_rows(picks), self._pool.raw(picks)
        return condition_on_rows(self._initial, "pool", rows, features, labels, self._rule.step, gamma)

    @property
    @entry
    @outside_inference_mode
    def answers(self) -> Answers:
        """The labels that stand, for a refit: rows, labels, trust and annotators, [n] each."""
        answers = self._progress.record.answers(self._pool.storage)
        return answers._replace(rows=self._pool.to_rows(answers.rows))

    @property
    @entry
    @outside_inference_mode
    def disagreements(self) -> Tensor:  # [k] int64
        """The rows to which annotators gave different labels, in ascending order."""
        answers = self._progress.record.answers(self._pool.storage)
        pairs = torch.stack([self._pool.to_rows(answers.rows), answers.labels], dim=1).unique(dim=0)
        rows: Tensor = pairs[1:, 0][pairs[1:, 0] == pairs[:-1, 0]].unique()
        return rows

    def __copy__(self) -> Self:
        """Return a copy for ``copy.copy``, with the same answers: it shares the pool, and goes on by itself.

        Labels change a scorer in place, so the copy makes its own from the record.
        """
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__, _progress=self._progress._replace(scorer=None))
        return copied

    def __repr__(self) -> str:
        """The numbers of answers and of rows that are left; never a matrix."""
        name = self._acquisition if isinstance(self._acquisition, str) else "a callable"
        told, closed = {pick for pick, _ in self._progress.record.told}, self._progress.record.closed
        waiting = len(set(self._progress.reserved) - closed)
        reserved = f"{waiting} reserved, " if waiting else ""
        return (
            f"SequentialSelector({name!r} over {len(self._pool)} rows, {len(told)} labelled, "
            f"{len(closed - told)} skipped, {reserved}{len(self._pool) - len(closed) - waiting} left; begun with "
            f"{self._initial})"
        )

    @outside_inference_mode
    def state_dict(self) -> dict[str, Any]:
        """All calls of ``tell``, ``skip`` and ``forget``, and the rows that are reserved.

        ``rows``, ``labels`` (-1 if skipped, -2 if forgotten), ``events`` and ``annotators`` are int64 [T], ``trust`` is
        float64 [T]; ``reserved`` int64 [R]; ``seed`` []; ``pool`` [5].

        The posterior and the pool are not part of it: make a new selector with them and call ``load_state_dict``. Of
        the pool it holds a checksum: number of rows, D, dtype, and the values of 1,024 rows, evenly spread from the
        first to the last, or of all rows if they are no more.
        """
        vectors = self._progress.record.vectors(self._pool.storage)
        reserved = vectors["rows"].new_tensor(self._progress.reserved, dtype=torch.int64)
        return {
            **vectors,
            "rows": self._pool.to_rows(vectors["rows"]),
            "reserved": self._pool.to_rows(reserved),
            "seed": torch.tensor(self._progress.seed, device="cpu"),
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
            what = "all are" if len(missing) == len(_STATE) else f"{', '.join(missing)} is"
            raise KeyError(f"state must hold {', '.join(_STATE)}; {what} missing")
        device = self._pool.storage.device
        given = events_of(state, self._initial.num_classes, device)
        seed = check_integer("state['seed']", state["seed"], at_least=0)
        reserved = integers(state, "reserved", device)
        if reserved.dim() != 1:
            raise ValueError(f"state['reserved'] must be a vector, got shape {shape_text(reserved.shape)}")
        self._check_pool(state["pool"])
        record = Record()
        for event in given:
            picks = self._as_picks("state['rows']", event.picks)
            record = record.added(self._checked("state['rows']", event._replace(picks=picks), record))
        if len(reserved):
            reserved = self._as_picks("state['reserved']", reserved)
        self._progress = self._replayed(_Progress(record, tuple(reserved.tolist()), seed, None))

    def _pool_checksum(self) -> PoolChecksum:
        if self._checksum is None:
            self._checksum = self._pool.checksum()
        return self._checksum

    def _check_pool(self, numbers: object) -> None:
        given = torch.tensor(numbers, device="cpu") if isinstance(numbers, list) else numbers  # as JSON gives it
        vector = as_dense("state['pool']", given)
        try:
            saved = PoolChecksum.from_numbers(as_labels("state['pool']", vector, vector.device).flatten().tolist())
        except ValueError as error:
            raise ValueError(f"state['pool'] must be what state_dict() returned: {error}") from None
        if difference := saved.difference(self._pool_checksum()):
            raise ValueError(
                f"pool {difference}, so that the rows of this state are others: make the selector with the pool that "
                "the state was saved with, in the same order, or begin anew with this one"
            )

    def _replayed(self, progress: _Progress) -> _Progress:
        """The same answers with a scorer that has absorbed those that stand.

        The present scorer begins anew if it has the same seed: it keeps what does not depend on answers, such as kernel
        values.
        """
        scorer = self._progress.scorer
        if scorer is not None and self._progress.seed == progress.seed:
            self._progress = self._progress._replace(scorer=None)
            scorer.restart()
        else:
            scorer = make_scorer(self._acquisition, self._setting(progress.seed))
        for event in progress.record.standing:
            _absorb(scorer, event, self._rule)
        scorer.withhold(torch.tensor(progress.reserved, dtype=torch.int64, device=self._pool.storage.device))
        return progress._replace(scorer=scorer, asked=None)

    def _ended(self, progress: _Progress, rows: Tensor) -> Tensor:
        """Keep the new state and return the rows, in one step: an exception between the two would lose the rows."""
        return (self.__dict__.update(_progress=progress), rows)[1]

    def _setting(self, seed: int) -> Setting:
        return Setting(
            self._initial,
            self._pool,
            self._link,
            self._labelled,
            seed,
            self._references,
            self._uncertainty,
            self._memory,
            _KERNEL_MEMORY if self._memory is None else self._memory,
        )

    def _take_scorer(self) -> Scorer:
        """Return the scorer, with no row taken that was asked for, and leave the selector without it."""
        progress = self._progress
        if progress.scorer is None:
            scorer = self._replayed(progress).scorer
            assert scorer is not None
            return scorer
        self._progress = progress._replace(scorer=None)
        if progress.asked is not None:
            progress.scorer.release(progress.asked)
        return progress.scorer

    def _add(self, event: Event) -> None:
        progress = self._progress
        after = progress._replace(record=progress.record.added(event), asked=None)
        if isinstance(event, Forgotten) and event.annotator is None:
            after = after._replace(reserved=_without(progress.reserved, event.picks))
        if isinstance(event, Forgotten) or progress.record.replaced_by(event):
            after = self._replayed(after)
        else:
            scorer = self._take_scorer()
            _absorb(scorer, event, self._rule)
            after = after._replace(scorer=scorer)
        self._progress = after  # last: an exception after it would tell the caller that nothing was kept

    def _checked(self, name: str, event: Event, record: Record) -> Event:
        """The event, or ValueError if it forgets what was never said."""
        if isinstance(event, Forgotten):
            whose = "or be skipped" if event.annotator is None else f"of annotator {event.annotator}"
            self._check_each(name, event.picks, record.said_by(event.annotator), f"have a label {whose}")
        return event

    def _check_each(self, name: str, picks: Tensor, allowed: Container[int], kind: str) -> None:
        for row, pick in zip(self._pool.to_rows(picks).tolist(), picks.tolist(), strict=True):
            if pick not in allowed:
                raise ValueError(f"{name} must {kind}, got {row}")

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


def _without(reserved: tuple[int, ...], picks: Tensor) -> tuple[int, ...]:
    freed = set(picks.tolist())
    return tuple(pick for pick in reserved if pick not in freed)


def _absorb(scorer: Scorer, event: Told | Skipped, rule: UpdateRule) -> None:
    if isinstance(event, Told):
        for rows, gamma in check_gamma(event.trust, event.trust[:, None]):
            scorer.absorb(event.picks[rows], event.labels[rows], rule._replace(gamma=gamma))
    scorer.withhold(event.picks)
