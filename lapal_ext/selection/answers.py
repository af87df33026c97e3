"""What a selector was told, call after call, and which of it stands."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.validation.tensors import as_dense, as_labels, check_finite, check_labels, shape_text

VECTORS = ("rows", "labels", "events", "trust", "annotators")
_SKIPPED, _FORGOTTEN = -1, -2  # labels of such rows in the vectors
_EVERYBODY = -1  # annotator whose answers are forgotten


class Told(NamedTuple):
    """Labels that one annotator gave."""

    picks: Tensor  # [k] int64
    labels: Tensor  # [k] int64
    trust: Tensor  # [k] float64, >= 0
    annotator: int

    def entries(self) -> dict[tuple[int, int], tuple[int, float]]:
        """Label and trust by pick and annotator."""
        rows = zip(self.picks.tolist(), self.labels.tolist(), self.trust.tolist(), strict=True)
        return {(pick, self.annotator): (label, trust) for pick, label, trust in rows}


class Skipped(NamedTuple):
    """Rows that are not to be asked for."""

    picks: Tensor  # [k] int64


class Forgotten(NamedTuple):
    """Rows whose answers and skips were taken back, or the answers of one annotator alone."""

    picks: Tensor  # [k] int64
    annotator: int | None


Event = Told | Skipped | Forgotten


class Answers(NamedTuple):
    """The answers that stand, in the order in which they are absorbed.

    Attributes:
        rows: [n] int64; a row that several annotators answered is there several times.
        labels: [n] int64.
        trust: the gamma of each, [n] float64.
        annotators: [n] int64.
    """

    rows: Tensor
    labels: Tensor
    trust: Tensor
    annotators: Tensor


class Record:
    """All events, and the part of them that stands; never modified.

    An annotator's later label of a row replaces the earlier one, and stands where it was given. What was forgotten does
    not stand.
    """

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self.events = tuple(events)

    @cached_property
    def standing(self) -> tuple[Told | Skipped, ...]:
        """The events without what later ones replace or forget."""
        kept: list[Told | Skipped] = []
        replaced: set[tuple[int, int]] = set()  # (pick, annotator)
        forgotten: set[int] = set()  # picks
        for event in reversed(self.events):
            picks = event.picks.tolist()
            match event:
                case Forgotten(annotator=None):
                    forgotten.update(picks)
                case Forgotten(annotator=int(annotator)):
                    replaced.update((pick, annotator) for pick in picks)
                case Skipped():
                    kept += _part(event, [pick not in forgotten for pick in picks])
                case Told(annotator=annotator):
                    stands = [pick not in forgotten and (pick, annotator) not in replaced for pick in picks]
                    kept += _part(event, stands)
                    replaced.update((pick, annotator) for pick in picks)
        return tuple(reversed(kept))

    @cached_property
    def told(self) -> dict[tuple[int, int], tuple[int, float]]:
        """Label and trust that stand, by pick and annotator."""
        return {
            key: value for event in self.standing if isinstance(event, Told) for key, value in event.entries().items()
        }

    @cached_property
    def closed(self) -> frozenset[int]:
        """Picks that have an answer or are skipped."""
        return frozenset(pick for event in self.standing for pick in event.picks.tolist())

    def said_by(self, annotator: int | None) -> frozenset[int]:
        """What ``Forgotten`` of this annotator may take back: their labels, or anybody's labels and the skips."""
        if annotator is None:
            return self.closed
        return frozenset(pick for pick, who in self.told if who == annotator)

    def replaced_by(self, event: Event) -> bool:
        """Whether an event changes what stands, so that all answers must be absorbed again."""
        return isinstance(event, Forgotten) or (
            isinstance(event, Told) and not self.told.keys().isdisjoint(event.entries())
        )

    def repeats(self, event: Told) -> bool:
        """Whether all of its labels stand already, with the same trust."""
        return all(self.told.get(key) == value for key, value in event.entries().items())

    def added(self, event: Event) -> "Record":
        """The record with one more event, O(1) events looked at unless it replaces something."""
        record = Record((*self.events, event))
        if isinstance(event, Forgotten) or self.replaced_by(event):
            return record
        record.standing = (*self.standing, event)
        record.told = {**self.told, **event.entries()} if isinstance(event, Told) else self.told
        record.closed = self.closed.union(event.picks.tolist())
        return record

    def answers(self, like: Tensor) -> Answers:
        """The answers that stand, with picks for rows; ``like`` has their device."""
        told = [event for event in self.standing if isinstance(event, Told)]
        empty = torch.zeros(0, dtype=torch.int64, device=like.device)
        return Answers(
            torch.cat([empty, *(event.picks for event in told)]),
            torch.cat([empty, *(event.labels for event in told)]),
            torch.cat([empty.double(), *(event.trust for event in told)]),
            torch.cat([empty, *(torch.full_like(event.picks, event.annotator) for event in told)]),
        )

    def vectors(self, like: Tensor) -> dict[str, Tensor]:
        """All events as the vectors [T] of a state, with picks for rows; ``like`` has their device."""
        empty = torch.zeros(0, dtype=torch.int64, device=like.device)
        parts: list[tuple[Tensor, ...]] = [(empty, empty, empty, empty.double(), empty)]
        for number, event in enumerate(self.events):
            picks = event.picks
            labels, trust, annotator = torch.full_like(picks, _SKIPPED), torch.zeros_like(picks).double(), 0
            match event:
                case Told():
                    labels, trust, annotator = event.labels, event.trust, event.annotator
                case Forgotten():
                    labels = torch.full_like(picks, _FORGOTTEN)
                    annotator = _EVERYBODY if event.annotator is None else event.annotator
            parts.append((picks, labels, torch.full_like(picks, number), trust, torch.full_like(picks, annotator)))
        return {name: torch.cat(vectors) for name, *vectors in zip(VECTORS, *parts, strict=True)}


def events_of(state: Mapping[str, object], n_classes: int, device: torch.device) -> list[Event]:
    """The events of a state, with rows for picks, or raise a typed error that names the vector."""
    rows, labels, events, annotators = (integers(state, name, device) for name in VECTORS if name != "trust")
    trust = _numbers("state['trust']", state["trust"], device)
    if not trust.dtype.is_floating_point:
        raise TypeError(f"state['trust'] must hold floating point numbers, got {trust.dtype}")
    if trust.device != device:
        raise ValueError(f"state['trust'] must be on {device}, got {trust.device}")
    vectors = (rows, labels, events, trust, annotators)
    if any(vector.dim() != 1 for vector in vectors) or len({len(vector) for vector in vectors}) > 1:
        shapes = ", ".join(f"{shape_text(v.shape)} {name}" for name, v in zip(VECTORS, vectors, strict=True))
        raise ValueError(f"state must hold vectors of one length, got {shapes}")
    check_finite("state['trust']", trust)
    if len(trust) and float(trust.min()) < 0.0:
        raise ValueError(f"state['trust'] must be at least 0, got {float(trust.min()):g}")
    result: list[Event] = []
    for number in events.unique():
        belongs = events == number
        picks, given, who = rows[belongs], labels[belongs], annotators[belongs].unique()
        forgotten = bool((given == _FORGOTTEN).all())
        if len(who) > 1 or int(who) < (_EVERYBODY if forgotten else 0):
            raise ValueError(f"state['annotators'] must hold one number >= 0 for an event, got {who.tolist()}")
        if forgotten:
            result.append(Forgotten(picks, None if int(who) == _EVERYBODY else int(who)))
        elif bool((given == _SKIPPED).all()):
            result.append(Skipped(picks))
        else:
            check_labels("state['labels']", given, n_classes)
            result.append(Told(picks, given, trust[belongs].double(), int(who)))
    return result


def integers(state: Mapping[str, object], name: str, device: torch.device) -> Tensor:
    """A vector of a state."""
    return as_labels(f"state[{name!r}]", state[name], device)


def _numbers(name: str, value: object, device: torch.device) -> Tensor:
    """Floating point numbers; of a list too, as JSON gives it."""
    if isinstance(value, list) and all(isinstance(number, float) for number in value):
        return torch.tensor(value, dtype=torch.float64, device=device)
    return as_dense(name, value)


def _part(event: Told | Skipped, stands: list[bool]) -> list[Told | Skipped]:
    """The event without the rows that no longer stand: itself, a part of it, or nothing."""
    if all(stands):
        return [event]
    if not any(stands):
        return []
    mask = torch.tensor(stands, device=event.picks.device)
    if isinstance(event, Skipped):
        return [Skipped(event.picks[mask])]
    return [Told(event.picks[mask], event.labels[mask], event.trust[mask], event.annotator)]
