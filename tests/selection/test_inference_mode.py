"""State is made of ordinary tensors in whatever mode it is made or changed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, SequentialSelector, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.features import extract
from lapal_ext.pool.pool import Pool
from tests.problems import Problem, make_problem

Mode = Callable[[], AbstractContextManager[object]]
ORDERS = {"made in it": (torch.inference_mode, nullcontext), "used in it": (nullcontext, torch.inference_mode)}


def tensors_of(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that an object holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_of(part, seen)
    elif isinstance(value, (list, tuple, set)):
        for part in value:
            yield from tensors_of(part, seen)
    elif type(value).__module__.startswith("lapal_ext") or isinstance(value, nn.Module):
        yield from tensors_of(vars(value), seen)


def check_ordinary(value: Any) -> None:
    found = list(tensors_of(value, set()))
    assert found
    assert not any(tensor.is_inference() for tensor in found)


def changes(problem: Problem) -> dict[str, Callable[[LastLayerLaplace], Any]]:
    x, y = problem.pool[:5], problem.labels[:5]
    return {
        "update": lambda model: model.update(x, y),
        "joint": lambda model: model.update(x, y, "joint"),
        "fit": lambda model: model.fit(x),
        "add_class": lambda model: model.add_class(),
        "refresh": lambda model: model.refresh(),
        "load_state_dict": lambda model: (model.load_state_dict(model.condition_on(x, y).state_dict()), model)[1],
        "float": lambda model: model.float().double(),
        "condition_on": lambda model: model.condition_on(x, y),
        "clone": lambda model: model.clone(),
        "precision": lambda model: (model.update(x, y), model.precision, model)[2],
        "to_linear": lambda model: model.to_linear(),
    }


def constructors(problem: Problem, path: Any) -> dict[str, Callable[[], LastLayerLaplace]]:
    x, y = problem.pool, problem.labels
    head = nn.Linear(x.shape[1], 4, dtype=x.dtype)
    problem.posterior.save(path)
    return {
        "itself": lambda: LastLayerLaplace(x[:4]).fit(x),
        "with a bias": lambda: LastLayerLaplace(x[:4], bias=x[:4, 0]).fit(x),
        "from_linear": lambda: LastLayerLaplace.from_linear(head, x, standardize=True),
        "fit_map": lambda: LastLayerLaplace.fit_map(x, y, 4),
        "fit_map float32": lambda: LastLayerLaplace.fit_map(x.float(), y, 4, standardize=False).double(),
        "untrained": lambda: LastLayerLaplace.untrained(x, 4),
        "load": lambda: LastLayerLaplace.load(path),
    }


NAMES = ["itself", "with a bias", "from_linear", "fit_map", "fit_map float32", "untrained", "load"]


@pytest.mark.parametrize("change", list(changes(make_problem())))
@pytest.mark.parametrize("constructor", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_models(order: str, constructor: str, change: str, tmp_path: Any) -> None:
    problem = make_problem()
    made, used = ORDERS[order]
    make, alter = constructors(problem, tmp_path / "a.safetensors")[constructor], changes(problem)[change]
    with made():
        model = make()
    check_ordinary(model)
    with used():
        result = alter(model)
    check_ordinary(result)
    expected = alter(make())
    for one, other in zip(result.state_dict().values(), expected.state_dict().values(), strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other)
    with torch.no_grad():  # whatever torch does with the tensors of a module
        for tensor in (*result.parameters(), *result.buffers()):
            tensor.mul_(1.0)
    copy.deepcopy(result)


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_selectors(order: str, acquisition: str) -> None:
    if acquisition in ("typiclust", "probcover"):
        pytest.importorskip("sklearn")
    problem = make_problem()
    made, used = ORDERS[order]

    def make() -> SequentialSelector:
        generator = torch.Generator().manual_seed(0)
        pool = problem.pool.clone()  # in the mode too, as features are that a model has just computed
        return SequentialSelector(problem.posterior, pool, acquisition, generator=generator, labelled=pool[:4].clone())

    expected = make()
    with made():
        selector = make()
        first = selector.ask()
    for number in range(4):
        with used() if number % 2 == 0 else nullcontext():
            row = selector.ask() if number else first
            assert torch.equal(row, expected.ask())
            selector.tell(row, problem.labels[row])
        expected.tell(row, problem.labels[row])
    with used():
        selector.skip(selector.ask(2))
        selector.undo()
        state = selector.state_dict()
        selector.load_state_dict(state)
        posterior = selector.posterior
    assert torch.equal(selector.ask(), expected.ask())
    assert torch.equal(posterior.mean, expected.posterior.mean)
    check_ordinary(posterior)
    check_ordinary(state)
    selector._pool = selector._initial = None  # type: ignore[assignment]  # the pool holds the caller's own rows
    check_ordinary(selector._progress.record.events)


def test_an_answer_that_is_told_again_is_not_counted() -> None:
    """A selector from ``inference_mode``, and the same ``tell`` three times."""
    problem = make_problem()
    with torch.inference_mode():
        selector = SequentialSelector(problem.posterior, problem.pool)
        row = int(selector.ask())
    for _ in range(3):
        selector.tell(row, 1)
    assert selector.posterior.absorbed_labels == 1


@pytest.mark.parametrize("order", ORDERS)
def test_pools(order: str) -> None:
    problem = make_problem()
    made, used = ORDERS[order]
    rows = torch.arange(40)
    with made():
        pool = Pool(problem.posterior, problem.pool, rows)
    expected = Pool(problem.posterior, problem.pool, rows)
    for mode in (used, nullcontext, torch.inference_mode, nullcontext):
        with mode():
            assert torch.equal(pool.mean(), expected.mean())
            assert torch.equal(pool.norms(), expected.norms())
            assert torch.equal(pool.latent(with_variance=True)[0], expected.latent(with_variance=True)[0])
    check_ordinary(pool)


@pytest.mark.parametrize("targets", ["predicted", "sampled", None])
def test_batches(targets: str | None) -> None:
    problem = make_problem()
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        result = select_batch(problem.posterior, problem.pool, 5, targets=targets, generator=generator)
    check_ordinary(result)
    expected = select_batch(
        problem.posterior, problem.pool, 5, targets=targets, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(result.indices, expected.indices)


@pytest.mark.parametrize("kept", [False, True])
def test_features(kept: bool, tmp_path: Any) -> None:
    """A head can be trained on features that were extracted in the mode."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    with torch.inference_mode():
        found = extract(model, torch.randn(9, 5), path=tmp_path / "a.npy" if kept else None)
    head = nn.Linear(6, 3)
    head(found.features).sum().backward()
    assert head.weight.grad is not None


def test_a_layer_made_in_the_mode_can_be_trained() -> None:
    problem = make_problem()
    with torch.inference_mode():
        head = problem.posterior.to_linear()
    head(problem.pool).sum().backward()
    assert head.weight.grad is not None
