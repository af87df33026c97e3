"""The picks of one process are those of any number, with uneven shards, an empty one, and one of a single row.

The quick run has one process, and three; ``pytest -m slow tests/pool/sharding`` two and four as well.
"""

import pytest
import torch

from lapal_ext import backend, select_batch
from tests.native import require_native
from tests.pool.sharding.cases import BATCH, CASES, COPIES_ALONE, SHARDS, problem
from tests.pool.sharding.processes import run, select_all

QUICK_SIZES = (1, 3)
of_each_size = pytest.mark.parametrize(
    "size", [size if size in QUICK_SIZES else pytest.param(size, marks=pytest.mark.slow) for size in SHARDS]
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """By the number of ranks: those that a selected test asks for."""
    asked = {item.callspec.params["size"] for item in request.session.items if item.path == request.path}
    return run(select_all, sorted(asked), tmp_path_factory.mktemp("ranks") / "folder")


@of_each_size
@pytest.mark.parametrize("name", CASES)
def test_the_picks_of_one_process(results, name: str, size: int) -> None:
    if name == COPIES_ALONE and size > 1:  # without kernels, rounding is all that their distances are
        require_native("inner_products", "cpu")
    case, made = CASES[name], problem()
    alone = select_batch(made.posterior, made.pool.to(case.storage), **{"batch_size": BATCH, **case.arguments(made)})
    native = backend("inner_products", "cpu") == "native"  # torch's products of matrices may tell copies of a row apart
    for indices, utilities, mean in (results[size][rank][name] for rank in range(size)):
        assert made.pool[indices].equal(made.pool[alone.indices])
        if native:
            assert indices == alone.indices.tolist()
        torch.testing.assert_close(torch.tensor(utilities), alone.utilities, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.tensor(mean), alone.posterior.mean.flatten(), rtol=1e-5, atol=1e-5)


@of_each_size
def test_all_ranks_have_the_same_bits(results, size: int) -> None:
    assert all(results[size][rank] == results[size][0] for rank in range(size))
