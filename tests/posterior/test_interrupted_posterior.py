"""Every method that changes a posterior changes all of its state or none, wherever an exception ends it."""

from collections.abc import Callable, Mapping

import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.posterior.last_layer_laplace import UPDATE_STEPS
from tests.interruptions import InjectedError, Raising, raising_at_line, raising_at_op
from tests.problems import make_problem

Call = Callable[[LastLayerLaplace], object]
Methods = Mapping[str, Call]

PROBLEM = make_problem(n_pool=8)
X, Y = PROBLEM.pool, PROBLEM.labels
GAMMA = torch.tensor([1.0, 2.0, 2.0, 0.5, 1.0, 1.0, 0.0, 3.0], dtype=X.dtype)
NAMES = ["a", "b", "c", "d"]
OTHER = PROBLEM.posterior.condition_on(X[3:], Y[3:])
OTHER.class_names = reversed(NAMES)
STATE = OTHER.state_dict()
BY_COLUMNS = {**STATE, "scale": OTHER.scale.expand(12)}
_LAST = 25  # steps of a call that are all tried: the new state is kept in one of them
_TRIED = 100  # of those before, about as many


def update(step: str, gamma: float | torch.Tensor) -> Call:
    return lambda posterior: posterior.update(X, Y, step, gamma)


METHODS: Methods = {
    **{f"update by {step}": update(step, 1.0) for step in UPDATE_STEPS},
    **{f"update by {step}, gamma per row": update(step, GAMMA) for step in UPDATE_STEPS},
    "update with many rows": lambda posterior: posterior.update(X.repeat(3, 1), Y.repeat(3)),
    "fit": lambda posterior: posterior.fit(X),
    "fit to the prior": lambda posterior: posterior.fit(X[:0]),
    "refresh": lambda posterior: posterior.refresh(),
    "load_state_dict": lambda posterior: posterior.load_state_dict(STATE),
    "load_state_dict by columns": lambda posterior: posterior.load_state_dict(BY_COLUMNS),
    "load_state_dict, assigned": lambda posterior: posterior.load_state_dict(STATE, assign=True),
    "set_extra_state": lambda posterior: posterior.set_extra_state(OTHER.get_extra_state()),
    "add_class": lambda posterior: posterior.add_class("e"),
    "class_names": lambda posterior: setattr(posterior, "class_names", reversed(NAMES)),
    "to": lambda posterior: posterior.to(torch.float32),
}


def begun(named: bool = True) -> LastLayerLaplace:
    """A posterior with a label that its precision has not added."""
    posterior = PROBLEM.posterior.clone()
    posterior.class_names = NAMES if named else None
    return posterior.update(X[:1], Y[:1])


def summary(posterior: LastLayerLaplace) -> list[object]:
    """Every value of the state."""
    state = posterior.state_dict()
    return [
        (name, value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    ]


def check(call: Call, start: LastLayerLaplace, where: Raising) -> None:
    before = summary(start.clone())
    done = start.clone()
    with where(0, InjectedError) as seen:
        call(done)
    after = summary(done)
    every = 1 + seen[0] // _TRIED
    number, interrupted = 1, 0
    while True:
        error = (InjectedError, KeyboardInterrupt)[interrupted % 2]
        posterior = start.clone()
        try:
            with where(number, error):
                call(posterior)
        except (error, RuntimeError):  # torch reports what goes wrong in a copy as a RuntimeError
            interrupted += 1
            assert summary(posterior) == before, f"step {number}"
        else:
            break
        number = min(number + every, max(number + 1, seen[0] - _LAST))
    assert interrupted > 0 or seen[0] == 0  # some methods have no operations of torch
    assert summary(posterior) == after


@pytest.mark.parametrize("where", [raising_at_line, raising_at_op], ids=["line", "op"])
@pytest.mark.parametrize("name", METHODS)
def test_an_exception_anywhere_changes_nothing(name: str, where: Raising) -> None:
    check(METHODS[name], begun(), where)


def test_an_exception_as_a_class_without_a_name_is_added_changes_nothing() -> None:
    check(lambda posterior: posterior.add_class(), begun(named=False), raising_at_line)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_warning_that_is_an_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lapal_ext.posterior.softmax_fit.objective.Fit.warning_text", lambda *_: "not converged")
    posterior = begun()
    before = summary(posterior)
    with pytest.raises(RuntimeWarning, match="not converged"):
        posterior.update(X, Y, "joint")
    assert summary(posterior) == before


def test_a_hook_can_be_removed_after_every_method() -> None:
    for name, call in METHODS.items():
        posterior = begun()
        calls: list[object] = []
        hook = posterior.register_forward_hook(lambda *arguments, calls=calls: calls.append(arguments))
        call(posterior)
        hook.remove()
        posterior(X.to(posterior.mean.dtype))
        assert not calls, name
