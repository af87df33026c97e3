"""Every method that changes a posterior changes all of it or nothing, wherever an exception ends it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lapal_ext import LastLayerLaplace
from tests.draws import Draw
from tests.interrupted import raising_at_line, raising_at_op

DRAW = Draw(0)
FEATURES, LABELS = DRAW.normal(12, 4), torch.arange(12) % 3
TRUST = torch.tensor([1.0, 2.0, 2.0, 0.5])


def begun() -> LastLayerLaplace:
    """A posterior with names, whose precision has observations that are not yet added to it."""
    posterior = LastLayerLaplace.fit_map(FEATURES[:8], LABELS[:8], 3, class_names=["a", "b", "c"])
    return posterior.update(FEATURES[8:9], LABELS[8:9])


OTHER = begun().update(FEATURES[3:6], LABELS[3:6]).state_dict()
CALLS: dict[str, Callable[[LastLayerLaplace], object]] = {
    "update": lambda posterior: posterior.update(FEATURES[8:], LABELS[8:]),
    "update newton": lambda posterior: posterior.update(FEATURES[8:], LABELS[8:], "newton"),
    "update joint": lambda posterior: posterior.update(FEATURES[8:], LABELS[8:], "joint"),
    "update gamma": lambda posterior: posterior.update(FEATURES[8:], LABELS[8:], gamma=TRUST),
    "update more rows than columns": lambda posterior: posterior.update(FEATURES, LABELS),
    "fit": lambda posterior: posterior.fit(FEATURES[:5]),
    "add_class": lambda posterior: posterior.add_class("d"),
    "refresh": lambda posterior: posterior.refresh(),
    "load_state_dict": lambda posterior: posterior.load_state_dict(OTHER),
    "set_extra_state": lambda posterior: posterior.set_extra_state(OTHER["_extra_state"]),
    "class_names": lambda posterior: setattr(posterior, "class_names", ["x", "y", "z"]),
    "float": lambda posterior: posterior.float(),
}


def summary(posterior: LastLayerLaplace) -> list[Any]:
    """All that is saved, and all that follows from it."""
    state = posterior.state_dict()
    extra = state.pop("_extra_state")
    return [extra, repr(posterior), *((value.dtype, value.tolist()) for value in state.values())]


@pytest.mark.parametrize("where", [raising_at_line, raising_at_op], ids=["line", "op"])
@pytest.mark.parametrize("name", CALLS)
def test_an_exception_anywhere_changes_nothing(name: str, where: Any) -> None:
    """The same posterior is tried again after each exception, and in the end counts every label once."""
    posterior, done = begun(), begun()
    before = summary(posterior)
    assert summary(done) == before  # which adds what was pending to the precision, in both
    CALLS[name](done)
    after = summary(done)
    assert before != after or name == "refresh"
    number = 1
    while True:
        try:
            with where(number, KeyboardInterrupt):  # torch turns others into one of its own as it copies a state
                CALLS[name](posterior)
        except KeyboardInterrupt:
            assert summary(posterior) == before, f"step {number}"
        else:
            break
        number += 1
    assert number > 1 or where is raising_at_op
    assert summary(posterior) == after
