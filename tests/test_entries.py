"""Public functions within ``torch.compile``: they run as they are, and what is around them is compiled."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace, SequentialSelector, look_ahead, select_batch
from tests.problems import Problem, make_problem

BATCHES = torch.tensor([[0, 1], [2, 3]])

CALLS: dict[str, Callable[[Problem, Tensor], Tensor]] = {
    "select_batch": lambda p, x: select_batch(p.posterior, x, 3).indices,
    "look_ahead": lambda p, x: look_ahead(p.posterior, x, BATCHES, p.labels, p.eval_features),
    "predict_proba": lambda p, x: p.posterior.predict_proba(x),
    "condition_on": lambda p, x: p.posterior.condition_on(x, p.labels).mean,
    "fit_map": lambda p, x: LastLayerLaplace.fit_map(x, p.labels, 4).mean,
    "SequentialSelector": lambda p, x: SequentialSelector(p.posterior, x).ask(2),
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_torch_compile_traces_what_is_around_a_call_alone(name: str, autocast: bool) -> None:
    problem, traced = make_problem(dtype=torch.float32), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        traced.extend(node.target.__name__ for node in graph.graph.nodes if node.op.startswith("call_"))
        return graph.forward

    def around(x: Tensor) -> Tensor:
        return CALLS[name](problem, x * 2.0) + 1

    expected = around(problem.pool)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(torch.compile(around, backend=backend)(problem.pool), expected)
    assert traced == ["mul", "add"]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from the import of inductor
def test_a_public_function_may_be_compiled_itself() -> None:
    """By the default backend, to which its pieces were a wrong program."""
    problem = make_problem(dtype=torch.float32)
    expected = select_batch(problem.posterior, problem.pool, 3)
    result = torch.compile(select_batch)(problem.posterior, problem.pool, 3)
    assert torch.equal(result.indices, expected.indices)
    assert torch.equal(result.utilities, expected.utilities)
