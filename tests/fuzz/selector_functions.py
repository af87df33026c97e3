"""What a ``SequentialSelector`` accepts after some answers, and how a campaign changes it and each argument."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from lapal_ext import SequentialSelector
from lapal_ext.likelihood import STEPS
from tests.fuzz import changes
from tests.fuzz.changes import EITHER, REFUSED, SAME, Argument, Changed, Choose, Options, evenly, pick
from tests.fuzz.small import Arguments, Function, Small

ACQUISITIONS = ("margin", "entropy", "variance", "bald", "badge", "coreset")


class Restartable(SequentialSelector):
    """A selector that keeps its arguments, so that it can be built again in another dtype."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._arguments = arguments

    @property
    def draws(self) -> bool:
        """Whether its questions follow from random numbers, which differ between float32 and float64."""
        return self._acquisition == "badge"

    def again(self, convert: Callable[[object], Any]) -> "Restartable":
        made = Restartable(**{name: convert(value) for name, value in self._arguments.items()})
        made.load_state_dict(self.state_dict())
        if self._progress.asked is not None:
            made.ask(len(self._progress.asked))
        return made

    def _check_pool(self, numbers: object) -> None:
        """The same rows in float64 are another pool, and the reference here; tests/selection/test_another_pool.py."""


def _selector(choose: Choose, p: Small) -> Restartable:
    """A selector after some answers and skips, with an open question or without."""
    # Two rows are equally far from their mean, where coreset begins, but for rounding.
    acquisition = choose(st.sampled_from([name for name in ACQUISITIONS if name != "coreset" or len(p.x) != 2]))
    made = Restartable(
        posterior=p.posterior,
        pool=p.x,
        acquisition=acquisition,
        step=choose(st.sampled_from(STEPS)),
        candidates=torch.arange(len(p.x)) if choose(st.booleans()) else None,
        generator=torch.Generator().manual_seed(1),
    )
    for row, what in enumerate(choose(st.lists(st.sampled_from("ts"), max_size=len(p.x) - 1))):
        _ = made.tell(row, int(p.y[row])) if what == "t" else made.skip(row)
    if choose(st.booleans()):
        made.ask()
    return made


def _over_damaged(good: Restartable) -> Restartable:
    """A selector whose covariance is not positive semi-definite; the given one if that cannot be built."""

    def damage(value: object) -> object:
        if value is not good._arguments["posterior"]:
            return value
        damaged = value.clone()
        damaged.covariance.neg_()
        return damaged

    try:
        return good.again(damage)
    except (ValueError, ArithmeticError):
        return good


def _to_its_end(good: Restartable) -> Restartable:
    ended = good.again(lambda value: value)
    for row in range(len(ended._pool)):
        ended.skip(row)
    return ended


def _selector_argument(choose: Choose, p: Small) -> Argument:
    def change(choose: Choose, good: Restartable) -> Changed:
        return pick(
            choose,
            {
                "one over a damaged posterior": (EITHER, lambda: _over_damaged(good)),
                "one with no rows left": (EITHER, lambda: _to_its_end(good)),
            },
        )

    return Argument(_selector(choose, p), change)


def _rows(good: Any, size: int, told: set[int]) -> Argument:
    """Rows to answer: an integer, or a vector of any integer type."""

    def change(choose: Choose, good: Any) -> Changed:
        if isinstance(good, int):
            made = changes.integer(good, 0, size - 1).change(choose, good)
            # Several rows are wrong for one label, and right if there happen to be as many labels. A list may hold one.
            are_rows = made.words == "several" or isinstance(made.value, list)
            return made._replace(verdict=EITHER) if are_rows else made
        options: Options = {
            "none": (REFUSED, lambda: good[:0]),
            "another kind": (REFUSED, lambda: good.to(changes.one_of(choose, torch.float64, torch.bool))),
            "narrower": (SAME, lambda: good.to(changes.one_of(choose, torch.int32, torch.uint8))),
            "no row": (REFUSED, lambda: changes.entry(choose, good, choose(changes.outside(size)))),
            "a row twice": (REFUSED, lambda: torch.cat([good, good[:1]])),
            "a matrix": (REFUSED, lambda: good[None]),
            "None": (REFUSED, lambda: None),
            **changes.not_here(good),
            "a list": (SAME, good.tolist),
            **{words: value for words, value in changes.in_arrays(choose, good).items() if "0-d" not in words},
            "0-d of floats": (REFUSED, lambda: np.array(0.0)),
            "0-d of objects": (REFUSED, lambda: np.array(0, dtype=object)),
        }
        if told:
            options["a row that has its label"] = (EITHER, lambda: torch.tensor([evenly(choose, sorted(told))]))
        return pick(choose, options)

    return Argument(good, change)


def _class_labels(good: Any, n_classes: int) -> Argument:
    def change(choose: Choose, good: Any) -> Changed:
        if isinstance(good, int):
            made = changes.integer(good, 0, n_classes - 1).change(choose, good)
            return made._replace(verdict=EITHER) if isinstance(made.value, list) else made  # which may hold one label
        made = changes.labels(good, n_classes).change(choose, good)
        one = len(good) == 1 and made.words in {"a scalar", "an array, 0-d"}  # which are one label then
        return made._replace(verdict=EITHER) if one else made

    return Argument(good, change)


def _answered(selector: Restartable) -> set[int]:
    state = selector.state_dict()
    return set(state["rows"][state["labels"] >= 0].tolist())


def _tell(choose: Choose, p: Small) -> Arguments:
    selector = _selector_argument(choose, p)
    told = _answered(selector.good)
    left = choose(st.permutations(sorted(set(range(len(p.x))) - told)))
    rows: Any = torch.tensor(left[: choose(st.integers(1, len(left)))])
    labels: Any = p.y[rows]
    if choose(st.booleans()):
        rows, labels = int(rows[0]), int(labels[0])
    return {
        "selector": selector,
        "indices": _rows(rows, len(p.x), told),
        "labels": _class_labels(labels, p.n_classes),
    }


def _skip(choose: Choose, p: Small) -> Arguments:
    made = _tell(choose, p)
    return {name: made[name] for name in ("selector", "indices")}


def _forget(choose: Choose, p: Small) -> Arguments:
    selector = _selector_argument(choose, p)
    if not selector.good._progress.record.closed:
        selector.good.tell(0, 0)
    said = choose(st.permutations(sorted(selector.good._progress.record.closed)))
    rows: Any = torch.tensor(said[: choose(st.integers(1, len(said)))])
    return {"selector": selector, "indices": _rows(rows, len(p.x), set())}


def _release(choose: Choose, p: Small) -> Arguments:
    selector = _selector_argument(choose, p)
    left = len(p.x) - len(selector.good._progress.record.closed)
    rows = selector.good.ask(choose(st.integers(1, left)), reserve=True)
    return {"selector": selector, "indices": _rows(rows, len(p.x), set())}


def _undo(choose: Choose, p: Small) -> Arguments:
    """``undo`` takes no argument, so a campaign changes the selector that it is called on."""
    selector = _selector_argument(choose, p)
    if not selector.good._progress.record.events:
        selector.good.skip(0)

    def change(choose: Choose, good: Restartable) -> Changed:
        if choose(st.booleans()):
            return selector.change(choose, good)
        empty = Restartable(**good._arguments)
        if choose(st.booleans()):
            empty.ask()
        return Changed(empty, REFUSED, "one that was told nothing")

    return {"selector": Argument(selector.good, change)}


def _ask(choose: Choose, p: Small) -> Arguments:
    selector = _selector_argument(choose, p)
    left = len(p.x) - len(selector.good._progress.record.closed)
    return {"selector": selector, "n": changes.integer(choose(st.integers(1, left)), 1, left)}


def _load(choose: Choose, p: Small) -> Arguments:
    selector = _selector_argument(choose, p)
    saved = _to_its_end(selector.good).state_dict() if choose(st.booleans()) else selector.good.state_dict()
    return {"selector": selector, "state": Argument(saved, lambda choose, good: _other_state(choose, good, p))}


def _other_state(choose: Choose, good: dict[str, Any], p: Small) -> Changed:
    name = evenly(choose, ("rows", "labels", "events"))
    vector = good[name]
    wrong = evenly(choose, (None, 1.0, "x", [None], vector.double(), vector > 0, vector.to("meta")))
    bad_seed = evenly(choose, (None, -1, 1.0, "1", True, torch.tensor(1.0), torch.tensor([1, 2]), 2**64))
    options: Options = {
        "no dict": (REFUSED, lambda: evenly(choose, (None, [], "x", 1, torch.zeros(3), sorted(good.items())))),
        "a name less": (REFUSED, lambda: {key: value for key, value in good.items() if key != name}),
        "no vector": (REFUSED, lambda: good | {name: wrong}),
        "another seed": (REFUSED, lambda: good | {"seed": bad_seed}),
        "a matrix": (REFUSED, lambda: good | {name: vector[None]}),
        "one more": (REFUSED, lambda: good | {name: torch.cat([vector, vector.new_zeros(1)])}),
        "the same": (SAME, lambda: {key: value.clone() for key, value in good.items()}),
        "in narrower integers": (SAME, lambda: good | {name: vector.to(torch.int32)}),
        "in lists": (SAME, lambda: good | {name: vector.tolist()}),
        "in arrays": (SAME, lambda: good | {name: vector.numpy().copy()}),
        "the same seed as an int": (SAME, lambda: good | {"seed": int(good["seed"])}),
    }
    if len(vector):
        size = {"rows": len(p.x), "labels": p.n_classes}.get(name)
        if size is not None:
            low = -2 if name == "labels" else -1  # -1 is a row that was skipped
            beyond = st.integers(-(2**63), low) | st.integers(size, 2**63 - 1)
            options["out of range"] = (REFUSED, lambda: good | {name: changes.entry(choose, vector, choose(beyond))})
        options["other numbers"] = (
            EITHER,
            lambda: good | {name: changes.entry(choose, vector, choose(st.integers(-1, 5)))},
        )
    return pick(choose, options)


def _left(selector: Restartable) -> tuple[object, ...]:
    """The posterior, the state and the next question of a selector, for a comparison."""
    state = selector.state_dict()
    left = len(selector._pool) - len(selector._progress.record.closed.union(selector._progress.reserved))
    question = selector.ask() if left else torch.zeros(0, dtype=torch.int64, device="cpu")
    return selector.posterior, [state[name] for name in sorted(state) if name != "pool"], question


def _called(name: str) -> Callable[..., object]:
    def call(selector: Restartable, **rest: object) -> object:
        getattr(selector, name)(**rest)
        return _left(selector)

    return call


def _undone(selector: Restartable) -> object:
    return selector.undo(), _left(selector)


def _asked(selector: Restartable, n: int) -> object:
    return selector.ask(n), _left(selector)


FUNCTIONS = {
    "SequentialSelector.ask": Function(_asked, _ask, moves="selector"),
    "SequentialSelector.tell": Function(_called("tell"), _tell, moves="selector"),
    "SequentialSelector.skip": Function(_called("skip"), _skip, moves="selector"),
    "SequentialSelector.forget": Function(_called("forget"), _forget, moves="selector"),
    "SequentialSelector.release": Function(_called("release"), _release, moves="selector"),
    "SequentialSelector.undo": Function(_undone, _undo, moves="selector"),
    "SequentialSelector.load_state_dict": Function(_called("load_state_dict"), _load, moves="selector"),
}
