"""Any order of calls of a selector: what stands is what a plain list of the calls says."""

import json
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lapal_ext import SequentialSelector
from tests.problems import make_problem

ROWS = range(12)
ACQUISITIONS = ("margin", "uherding", "badge", "bait", "random", "coreset", "variance")
several_rows = st.lists(st.sampled_from(ROWS), min_size=1, max_size=3, unique=True)
annotators = st.sampled_from((0, 1))


class Entry(NamedTuple):
    """One row of a call that stands: a label of an annotator, or a skip without either."""

    row: int
    label: int | None = None
    trust: float | None = None
    annotator: int | None = None


class Call(NamedTuple):
    rows: list[int]
    before: list[Entry]  # what stood before the call


class Calls(RuleBasedStateMachine):
    """``entries`` is what stands, in order; every call is checked against a selector that got that alone."""

    @initialize(acquisition=st.sampled_from(ACQUISITIONS))
    def begin(self, acquisition: str) -> None:
        self.problem, self.acquisition = make_problem(), acquisition
        self.selector = self.new_selector()
        self.entries: list[Entry] = []
        self.calls: list[Call] = []
        self.reserved: set[int] = set()

    def new_selector(self) -> SequentialSelector:
        return SequentialSelector(
            self.problem.posterior,
            self.problem.pool[: len(ROWS)],
            self.acquisition,
            labelled=self.problem.eval_features[:6],
            generator=torch.Generator().manual_seed(1),
        )

    def change(self, rows: list[int], entries: list[Entry]) -> None:
        self.calls.append(Call(rows, self.entries))
        self.entries = entries

    @rule(rows=several_rows, label=st.integers(0, 3), trust=st.sampled_from((1.0, 0.5, 0.0)), annotator=annotators)
    def tell(self, rows: list[int], label: int, trust: float, annotator: int) -> None:
        labels = [(label + place) % 4 for place in range(len(rows))]
        self.selector.tell(rows, labels, gamma=trust, annotator=annotator)
        new = [Entry(row, answer, trust, annotator) for row, answer in zip(rows, labels, strict=True)]
        if not set(new) <= set(self.entries):  # the same answers again change nothing
            corrected = {(row, annotator) for row in rows}
            self.change(rows, [old for old in self.entries if (old.row, old.annotator) not in corrected] + new)

    @rule(rows=several_rows)
    def skip(self, rows: list[int]) -> None:
        self.selector.skip(rows)
        self.change(rows, self.entries + [Entry(row) for row in rows])

    @precondition(lambda self: self.entries)
    @rule(data=st.data(), everybody=st.booleans())
    def forget(self, data: st.DataObject, everybody: bool) -> None:
        entry = data.draw(st.sampled_from(self.entries))
        annotator = None if everybody else entry.annotator
        self.selector.forget(entry.row, annotator)
        kept = [e for e in self.entries if e.row != entry.row or (annotator is not None and e.annotator != annotator)]
        self.change([entry.row], kept)
        if annotator is None:
            self.reserved.discard(entry.row)

    @precondition(lambda self: self.calls)
    @rule()
    def undo(self) -> None:
        rows, self.entries = self.calls.pop()
        assert self.selector.undo().tolist() == rows

    @precondition(lambda self: self.open_rows())
    @rule()
    def reserve(self) -> None:
        row = int(self.selector.ask(reserve=True))
        assert row in self.open_rows()
        self.reserved.add(row)

    @precondition(lambda self: self.reserved)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.reserved)))
        self.selector.release(row)
        self.reserved.discard(row)

    @rule(as_json=st.booleans())
    def save_and_load(self, as_json: bool) -> None:
        state = self.selector.state_dict()
        if as_json:
            state = json.loads(json.dumps({name: value.tolist() for name, value in state.items()}))
        self.selector = self.new_selector()
        self.selector.load_state_dict(state)

    def open_rows(self) -> list[int]:
        closed = {entry.row for entry in self.entries} | self.reserved
        return [row for row in ROWS if row not in closed]

    @invariant()
    def what_stands_is_as_if_told_alone(self) -> None:
        told = [entry for entry in self.entries if entry.label is not None]
        answers = self.selector.answers
        assert list(zip(*(column.tolist() for column in answers), strict=True)) == [tuple(entry) for entry in told]
        labels = {row: {entry.label for entry in told if entry.row == row} for row in ROWS}
        assert self.selector.disagreements.tolist() == [row for row in ROWS if len(labels[row]) > 1]
        expected = self.new_selector()
        for entry in self.entries:
            if entry.label is None:
                expected.skip(entry.row)
            else:
                expected.tell(entry.row, entry.label, gamma=entry.trust, annotator=entry.annotator)
        torch.testing.assert_close(self.selector.posterior.mean, expected.posterior.mean)
        torch.testing.assert_close(self.selector.posterior.covariance, expected.posterior.covariance)
        open_rows = self.open_rows()
        if open_rows:
            count = min(2, len(open_rows))
            asked = self.selector.ask(count).tolist()
            assert set(asked) <= set(open_rows)
            assert self.selector.ask(count).tolist() == asked
            if not self.reserved:
                assert expected.ask(count).tolist() == asked


Calls.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no error
)
TestCalls = Calls.TestCase
