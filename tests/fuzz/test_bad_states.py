"""Wrong states, files and answers: a typed error, and nothing changed."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lapal_ext import LastLayerLaplace, SequentialSelector, StorageError
from lapal_ext.posterior import state as storage
from tests.fuzz.calls import Call, bits, cases, check_error
from tests.fuzz.values import Bad
from tests.problems import Problem, make_problem

problem = make_problem()
STATE = problem.posterior.state_dict()
ATTRIBUTES = STATE["_extra_state"]
TENSORS = [name for name in STATE if name != "_extra_state"]
OTHER = make_problem(seed=5).posterior.update(problem.pool[:3], problem.labels[:3])


def states() -> dict[str, Bad]:
    """A whole state with one thing wrong; the message continues ``state_dict``."""
    bad = {"an unknown name": Bad({**STATE, "extra": torch.zeros(1)}, KeyError, r" must hold .* unknown: \['extra'\]")}
    for name in STATE:
        rest = {key: value for key, value in STATE.items() if key != name}
        bad[f"no {name}"] = Bad(rest, KeyError, rf" must hold .* missing: \['{name}'\]")
    for name in TENSORS:
        good = STATE[name]
        for words, value, error, says in (
            ("None", None, TypeError, r"must be a torch\.Tensor, got NoneType"),
            ("numpy", good.numpy(), TypeError, r"must be a torch\.Tensor, got"),
            ("integer", good.long(), TypeError, "must be float32, float64, bfloat16 or float16"),
            ("complex", good.to(torch.complex64), TypeError, "must be float32, float64, bfloat16 or float16"),
            ("wrong shape", torch.zeros(3, 3, 3), ValueError, r"must have shape \(.*\), got \(3, 3, 3\)"),
            ("NaN", torch.full_like(good, math.nan), ValueError, "must be finite"),
            ("meta", good.to("meta"), ValueError, "must (hold values|be on (cpu|meta) like)"),
        ):
            # All tensors of a state must be on one device. Where one is not, the error may name that one or another.
            named = r"\['\w+'\] " if words == "meta" else rf"\['{name}'\] "
            bad[f"{name} {words}"] = Bad({**STATE, name: value}, error, named + says)
    for words, attributes, error, says in (
        ("None", None, TypeError, "must be a dict, got NoneType"),
        ("missing", {"fitted": True}, KeyError, r"must hold .*missing: \['absorbed_labels', .*'prior_precision'\]"),
    ):
        bad[f"attributes {words}"] = Bad({**STATE, "_extra_state": attributes}, error, rf"\['_extra_state'\] {says}")
    return bad


CALLS = {
    "load_state_dict": Call(
        lambda posterior, state_dict: posterior.load_state_dict(state_dict),
        {"posterior": OTHER, "state_dict": STATE},
        {"state_dict": states()},
    ),
}


@pytest.mark.parametrize(("call", "argument", "bad"), cases(CALLS))
def test_wrong_state(call: Call, argument: str, bad: Bad) -> None:
    check_error(call, argument, bad)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("prior_precision", -1.0, ValueError),
        ("prior_precision", "1", TypeError),
        ("curvature", "bogus", ValueError),
        ("fitted", "no", TypeError),
        ("has_bias", False, ValueError),
        ("has_bias", None, TypeError),
    ],
)
def test_wrong_attribute(name: str, value: object, error: type[Exception]) -> None:
    model = OTHER.clone()
    before = bits(model)
    with pytest.raises(error, match=f"^{name} must"):
        model.load_state_dict({**STATE, "_extra_state": {**ATTRIBUTES, name: value}})
    assert bits(model) == before


def test_a_state_of_another_shape_changes_nothing() -> None:
    before = bits(OTHER)
    wider = make_problem(n_features=13).posterior
    with pytest.raises(ValueError, match=r"^state_dict\['mean'\] must have shape \(4, 13\), got \(4, 14\)"):
        OTHER.load_state_dict(wider.state_dict())
    assert bits(OTHER) == before


def test_a_state_for_other_modules_leaves_the_posterior_unchanged() -> None:
    """With ``strict=False`` the state of a backbone alone can be loaded; otherwise torch names the missing keys."""
    model = OTHER.clone()
    before = bits(model)
    both = nn.ModuleDict({"backbone": nn.BatchNorm1d(3), "head": model})
    state = {name: value for name, value in both.state_dict().items() if name.startswith("backbone")}
    assert "head.mean" in both.load_state_dict(state, strict=False).missing_keys
    with pytest.raises(RuntimeError, match="Missing key"):
        both.load_state_dict(state)
    assert bits(model) == before
    both.load_state_dict({**state, **{f"head.{name}": value for name, value in STATE.items()}})
    assert bits(model) == bits(problem.posterior)


def test_a_state_in_another_precision_is_cast() -> None:
    model = OTHER.clone()
    model.load_state_dict({**STATE, **{name: STATE[name].float() for name in TENSORS}})
    assert model.mean.dtype == torch.float64
    torch.testing.assert_close(model.mean, STATE["mean"], rtol=1e-6, atol=1e-6)


# Files


@pytest.mark.parametrize("path", [None, 3, [], b"x", torch.zeros(1)], ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("call", [problem.posterior.save, LastLayerLaplace.load])
def test_a_path_of_the_wrong_type_is_refused(call: Callable[[object], object], path: object) -> None:
    with pytest.raises(TypeError, match=f"^path must be a str or an os.PathLike, got {type(path).__name__}$"):
        call(path)


class PathInBytes:
    def __fspath__(self) -> bytes:
        return b"posterior"


def test_impossible_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=r"^path must name a file, got the folder"):
        problem.posterior.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^path must name a saved posterior, got"):
        LastLayerLaplace.load(tmp_path)
    for call in (problem.posterior.save, LastLayerLaplace.load):
        with pytest.raises(ValueError, match=r"^path must be the name of a file or a folder, got an empty str"):
            call("")
        with pytest.raises(ValueError, match=r"^path must not hold a null character"):
            call("a\0b")
        with pytest.raises(ValueError, match=r"^path must be a valid file name, got"):
            call(f"{tmp_path}/\ud800")
        with pytest.raises(TypeError, match=r"^path must be a str or an os.PathLike of str, got PathInBytes"):
            call(PathInBytes())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "error"),
    [("bogus", ValueError), ("cpu:x", ValueError), ("meta", ValueError), (1.0, TypeError), ([], TypeError)],
)
def test_impossible_devices_are_refused(tmp_path: Path, device: object, error: type[Exception]) -> None:
    problem.posterior.save(tmp_path / "p")
    with pytest.raises(error, match=r"^device must"):
        LastLayerLaplace.load(tmp_path / "p", device)
    assert bits(LastLayerLaplace.load(tmp_path / "p", "cpu")) == bits(problem.posterior)


@pytest.mark.parametrize(("name", "value"), [("mean", torch.zeros(3)), ("covariance", torch.full((13, 13), math.nan))])
def test_a_file_with_a_right_checksum_and_a_wrong_posterior_is_refused(
    tmp_path: Path, name: str, value: torch.Tensor
) -> None:
    tensors = {key: STATE[key] for key in TENSORS}
    storage.write_file(tmp_path / "p", {**tensors, name: value.double()}, ATTRIBUTES)
    with pytest.raises(StorageError, match="does not hold a posterior"):
        LastLayerLaplace.load(tmp_path / "p")


# Answers


def snapshot(selector: SequentialSelector) -> list[object]:
    return [bits(value) for value in (selector.ask(n=2), selector.posterior, *selector.state_dict().values())]


def started(problem: Problem) -> SequentialSelector:
    selector = SequentialSelector(problem.posterior, problem.pool)
    selector.tell(7, 0)
    selector.skip(9)
    return selector


SELECTOR_STATE = started(problem).state_dict()
PAIR = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s: s.ask(0), ValueError, "n must be at least 1, got 0"),
        (lambda s: s.ask(59), ValueError, r"n must be at most 58 \(the rows that are left\), got 59"),
        (lambda s: s.ask(1.0), TypeError, "n must be an integer, got float"),
        (lambda s: s.ask(True), TypeError, "n must be an integer, got bool"),
        (lambda s: s.tell(None, 0), TypeError, "indices must be an integer, got NoneType"),
        (lambda s: s.tell([1, 2.0], [0, 1]), TypeError, "indices must hold integers, got a list with float"),
        (lambda s: s.tell([1, 2], [0, "a"]), TypeError, "labels must hold names of classes or their numbers"),
        (lambda s: s.tell({1}, {0}), TypeError, "indices must be a torch"),
        (lambda s: s.tell(True, 0), TypeError, "indices must be an integer, got bool"),
        (lambda s: s.tell(torch.tensor([True]), 0), TypeError, "indices must hold integers, got torch.bool"),
        (lambda s: s.tell(PAIR[:0], PAIR[:0]), ValueError, "indices must hold at least one row, got none"),
        (lambda s: s.tell(PAIR[None], PAIR[:, None]), ValueError, r"indices must be one integer or have shape \(k,\)"),
        (lambda s: s.tell(PAIR, PAIR[None]), ValueError, r"labels must be one integer or have shape \(k,\)"),
        (lambda s: s.tell(PAIR, 1), ValueError, "labels must hold one label for each of 2 indices, got 1"),
        (lambda s: s.tell(PAIR, torch.tensor([0, 4])), ValueError, r"labels must lie in \[0, 4\)"),
        (lambda s: s.tell(PAIR, PAIR.float()), TypeError, "labels must hold integers"),
        (lambda s: s.tell(PAIR, PAIR.to_sparse()), TypeError, "labels must be a dense tensor"),
        (lambda s: s.tell(PAIR, PAIR.to("meta")), ValueError, "labels must be on cpu"),
        (lambda s: s.forget(8), ValueError, "indices must have a label or be skipped, got 8"),
        (lambda s: s.skip(60), ValueError, r"indices must lie in \[0, 60\)"),
        (lambda s: s.skip(PAIR[:0]), ValueError, "indices must hold at least one row, got none"),
        (lambda s: s.load_state_dict(None), TypeError, "state must be a dict, got NoneType"),
        (lambda s: s.load_state_dict({}), KeyError, "'state must hold rows, labels, events"),
        (
            lambda s: s.load_state_dict({**SELECTOR_STATE, "rows": [1.0, 2.0]}),
            TypeError,
            r"state\['rows'\] must hold integers",
        ),
        (
            lambda s: s.load_state_dict({**SELECTOR_STATE, "seed": torch.tensor(-1)}),
            ValueError,
            r"state\['seed'\] must be at least 0, got -1",
        ),
        (
            lambda s: s.load_state_dict({**SELECTOR_STATE, "seed": None}),
            TypeError,
            r"state\['seed'\] must be an integer, got NoneType",
        ),
        (
            lambda s: s.load_state_dict({**SELECTOR_STATE, "rows": torch.tensor([1, 99])}),
            ValueError,
            r"state\['rows'\] must lie in",
        ),
        (
            lambda s: s.load_state_dict(
                {**SELECTOR_STATE, "rows": torch.tensor([5, 5]), "labels": PAIR, "events": 0 * PAIR}
            ),
            ValueError,
            r"state\['rows'\] must not hold duplicates",
        ),
    ],
)
def test_wrong_answers_change_nothing(
    call: Callable[[SequentialSelector], object], error: type[Exception], message: str
) -> None:
    selector = started(problem)
    before = snapshot(selector)
    with pytest.raises(error, match=f'^["]?{message}') as caught:
        call(selector)
    assert type(caught.value) is error
    assert snapshot(selector) == before
