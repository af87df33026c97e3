import pytest
import torch

from lapal_ext import ops
from tests.budget import Outcome, assert_exact, assert_within_budget, outcome
from tests.draws import Arguments, Draw, cast
from tests.native import require_native
from tests.ops.examples import example

op = ops.nearest_distance_


def call(args: Arguments, dtype: torch.dtype, device: str) -> Outcome:
    return outcome(op, op, cast(op, args, dtype, device=device))


def pick_of(done: Outcome) -> tuple[int, float]:
    return int(done.values["result 0"]), float(done.values["result 1"])


def test_reference_is_greedy_on_explicit_distances(draw: Draw) -> None:
    """Five picks from two first centres, with every distance measured to every centre."""
    N, D = 14, 5
    pool, first, scale = draw.normal(N, D), draw.normal(2, D), 0.5 + draw.uniform(D)
    nearest, taken = torch.full((N,), torch.inf, dtype=torch.float64), torch.zeros(N, dtype=torch.bool)
    centres, fresh, picks = list(first), first, []
    for _ in range(5):
        index, distance = op.reference(pool, fresh, scale, nearest, taken)
        wanted = torch.stack([min((((x - c) * scale) ** 2).sum() for c in centres) for x in pool])
        assert_exact(nearest, wanted)
        pick = max((n for n in range(N) if n not in picks), key=wanted.tolist().__getitem__)
        assert int(index) == pick
        assert_exact(distance, wanted[pick])
        picks.append(pick)
        assert taken.nonzero()[:, 0].tolist() == sorted(picks)
        fresh = pool[pick][None]
        centres.append(pool[pick])


@pytest.mark.parametrize(
    ("N", "D", "L"), [(1, 1, 1), (37, 5, 4), (301, 67, 1), (129, 130, 7), (1033, 33, 2), (5, 19, 0)]
)
def test_budget(N: int, D: int, L: int, dtype: torch.dtype, device: str) -> None:
    args = example("nearest_distance_", N=N, D=D, L=L)
    assert_within_budget(op, args, dtype, device=device, each=True)


@pytest.mark.parametrize("pool_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pool_may_be_stored_in_another_precision(pool_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    args = example("nearest_distance_", N=67, D=83)
    args["pool"][:4] *= 1e-6  # subnormal in float16
    assert_within_budget(op, args, dtype, pool_dtype=pool_dtype, device=device, each=True)


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("D", [3, 67, 260])
def test_a_centre_and_its_copies_have_distance_zero(offset: float, D: int, dtype: torch.dtype, device: str) -> None:
    """Features far from the origin lose nothing: they are subtracted before they are squared."""
    args = example("nearest_distance_", N=40, D=D, L=5)
    args["pool"] += offset
    args["pool"][[7, 31]] = args["pool"][2].clone()
    args["centres"] = args["pool"][[5, 2, 6, 39, 8]]
    args["nearest"][:] = torch.inf
    done = assert_within_budget(op, args, dtype, device=device, each=True)
    zero = (done.values["nearest"] == 0).nonzero()[:, 0].tolist()
    assert zero == [2, 5, 6, 7, 8, 31, 39]


@pytest.mark.parametrize("D", [1, 7, 67, 130])
def test_duplicates_tie_to_the_lowest_index(D: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    copies = draw.integers(5, 1203)
    few = example("nearest_distance_", N=5, D=D)
    args = few | {name: few[name][copies] for name in ("pool", "nearest")}
    args["taken"] = draw.uniform(1203) < 0.3
    done = call(args, dtype, device)
    values = done.values["nearest"].cpu()
    for copy in range(5):
        assert (values[copies == copy] == values[copies == copy][0]).all()
    index, _ = pick_of(done)
    assert index == int(((copies == copies[index]) & ~args["taken"]).nonzero()[0])


def test_centres_at_once_are_centres_one_by_one(dtype: torch.dtype, device: str) -> None:
    require_native("nearest_distance_", device)
    args = cast(op, example("nearest_distance_", N=67, D=83, L=9), dtype, device=device)
    together = outcome(op, op, args)
    args["taken"][:], nearest = True, args["nearest"].clone()
    for centre in args["centres"]:
        op(**args | {"centres": centre[None], "nearest": nearest})
    assert torch.equal(nearest, together.values["nearest"])


def test_all_taken(dtype: torch.dtype, device: str) -> None:
    args = example("nearest_distance_")
    args["taken"][:] = True
    done = assert_within_budget(op, args, dtype, device=device)
    assert pick_of(done) == (-1, float("-inf"))
    assert done.values["taken"].all()


def test_empty_pool(dtype: torch.dtype, device: str) -> None:
    assert pick_of(call(example("nearest_distance_", N=0), dtype, device)) == (-1, float("-inf"))


def test_not_a_number_wins_unless_taken(dtype: torch.dtype, device: str) -> None:
    args = example("nearest_distance_", N=67)
    args["taken"][:] = False
    args["taken"][5] = True
    args["pool"][[5, 41, 66], 0] = float("nan")
    done = assert_within_budget(op, args, dtype, device=device)
    index, distance = pick_of(done)
    assert index == 41
    assert distance != distance
    assert done.values["taken"].nonzero()[:, 0].tolist() == [5, 41]
