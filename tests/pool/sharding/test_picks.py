"""Any number of processes makes the picks of one, with uneven shards, an empty one, and one of a single row.

The quick run has one process, and three; ``pytest -m slow tests/pool/sharding`` two and four as well.
"""

import pytest
import torch

from lapal_ext import backend, select_batch
from tests.native import require_native
from tests.pool.sharding.cases import BATCH, CASES, COPIES_ALONE, SHARDS, problem
from tests.pool.sharding.processes import STOPPING, run, select_all, stopping

QUICK_SIZES = (1, 3)
of_each_size = pytest.mark.parametrize(
    "size", [size if size in QUICK_SIZES else pytest.param(size, marks=pytest.mark.slow) for size in SHARDS]
)


@pytest.fixture(scope="module")
def results(tmp_path_factory, request):
    """Results by the number of ranks, for the numbers that the selected tests need."""
    asked = {item.callspec.params["size"] for item in request.session.items if item.path == request.path}
    return run(select_all, sorted(asked), tmp_path_factory.mktemp("ranks") / "folder")


@of_each_size
@pytest.mark.parametrize("name", CASES)
def test_all_ranks_make_the_picks_of_one_process(results, name: str, size: int) -> None:
    if name == COPIES_ALONE and size > 1:  # without kernels, their distances are rounding errors
        require_native("inner_products", "cpu")
    case, made = CASES[name], problem()
    alone = select_batch(made.posterior, made.pool.to(case.storage), **{"batch_size": BATCH, **case.arguments(made)})
    native = backend("inner_products", "cpu") == "native"  # torch's matrix products may differ between copies of a row
    for indices, utilities, mean in (results[size][rank][name] for rank in range(size)):
        assert made.pool[indices].equal(made.pool[alone.indices])
        if native:
            assert indices == alone.indices.tolist()
        torch.testing.assert_close(torch.tensor(utilities), alone.utilities, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(torch.tensor(mean), alone.posterior.mean.flatten(), rtol=1e-5, atol=1e-5)


@of_each_size
def test_all_ranks_stop_where_one_process_does(results, size: int) -> None:
    for [found] in (results[size][rank][STOPPING] for rank in range(size)):
        assert found == pytest.approx(stopping(problem().pool)[0], rel=1e-6)


@of_each_size
def test_all_ranks_have_the_same_bits(results, size: int) -> None:
    assert all(results[size][rank] == results[size][0] for rank in range(size))
