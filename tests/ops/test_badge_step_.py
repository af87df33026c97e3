import pytest
import torch
from torch import Tensor

from lapal_ext import ops
from tests.budget import FLOORS, assert_exact, assert_within_budget, outcome
from tests.draws import Arguments, Draw, cast
from tests.ops.examples import example

op = ops.badge_step_


def from_centre(pool: Tensor, gradient: Tensor, centre: int, distance: Tensor, threshold: float) -> Arguments:
    """Arguments for a new centre that is a row of the pool."""
    norms = gradient.square().sum(1) * pool.square().sum(1)
    return {
        "pool": pool,
        "u": pool[centre],
        "offset": torch.zeros((), dtype=torch.float64),
        "gradient": gradient,
        "g": gradient[centre],
        "squared_norm": norms,
        "centre_norm": norms[centre],
        "threshold": torch.tensor(threshold, dtype=torch.float64),
        "distance": distance,
    }


def drawn_by_definition(distance: Tensor, threshold: float) -> int:
    total, running = float(distance.sum()), 0.0
    for n, d in enumerate(distance.tolist()):
        running += d
        if running > threshold * total:
            return n
    return -1


def test_reference_is_k_means_plus_plus_on_explicit_embeddings(draw: Draw) -> None:
    """Five centres, with [N, C D] formed and every distance measured to every centre."""
    N, D, C = 14, 5, 4
    pool, gradient = draw.normal(N, D), draw.normal(N, C)
    embeddings = torch.stack([torch.outer(g, phi).flatten() for g, phi in zip(gradient, pool, strict=True)])
    distance, centre, centres = torch.full((N,), torch.inf, dtype=torch.float64), 3, []
    for threshold in (0.1, 0.5, 0.9, 0.0, 0.7):
        centres.append(centre)
        index = int(op.reference(**from_centre(pool, gradient, centre, distance, threshold)))
        wanted = torch.stack([min((e - embeddings[c]).square().sum() for c in centres) for e in embeddings])
        assert_exact(distance, wanted)
        assert not distance[centres].any()
        assert index == drawn_by_definition(wanted, threshold)
        assert index not in centres
        centre = index


def test_offset_is_one_more_constant_feature() -> None:
    args = example("badge_step_") | {"offset": torch.tensor(0.7, dtype=torch.float64)}
    args["squared_norm"], args["centre_norm"] = 40 + args["squared_norm"], args["centre_norm"] + 40
    args["distance"][:] = torch.inf
    product = torch.tensor([sum(phi * args["u"]) + 0.7 for phi in args["pool"]]) * (args["gradient"] @ args["g"])
    wanted = args["squared_norm"] + args["centre_norm"] - 2 * product
    assert_exact(outcome(op.reference, op, args).values["distance"], wanted)


@pytest.mark.parametrize(("N", "D", "C"), [(1, 1, 2), (37, 5, 2), (301, 67, 10), (29, 33, 150), (9, 3, 1000)])
def test_budget(N: int, D: int, C: int, dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("badge_step_", N=N, D=D, C=C), dtype, device=device)


@pytest.mark.parametrize("pool_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pool_may_be_stored_in_another_precision(pool_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("badge_step_", N=67, D=19), dtype, pool_dtype=pool_dtype, device=device)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.8, 1 - 2**-24])
def test_draws_in_proportion_to_distance(threshold: float, dtype: torch.dtype, device: str) -> None:
    """Zero distances at both ends and in between are never drawn, however extreme the threshold."""
    args = example("badge_step_", N=6)
    distance = torch.tensor([0.0, 2.0, 0.0, 1.0, 5.0, 0.0], dtype=torch.float64)
    args |= {"distance": distance, "threshold": torch.tensor(threshold, dtype=torch.float64)}
    args["squared_norm"] += 1e4  # the centre is far from all
    done = assert_within_budget(op, args, dtype, device=device)
    assert int(done.values["result 0"]) == drawn_by_definition(distance, threshold)
    assert torch.equal(done.values["distance"].cpu().double(), distance)


def test_rows_are_drawn_as_often_as_their_distances_say(dtype: torch.dtype, device: str) -> None:
    args = example("badge_step_", N=4)
    args["distance"] = torch.tensor([1.0, 0.0, 4.0, 5.0], dtype=torch.float64)
    args["squared_norm"] += 1e4
    args = cast(op, args, dtype, device=device)
    drawn = [int(op(**args | {"threshold": args["threshold"].new_tensor((i + 0.5) / 200)})) for i in range(200)]
    assert [drawn.count(n) for n in range(4)] == [20, 0, 80, 100]


def test_the_last_row_that_is_not_zero_is_drawn_however_sums_round(dtype: torch.dtype, device: str, draw: Draw) -> None:
    """The sums over parts of the pool may differ from the total in the last bit."""
    args = example("badge_step_", N=300, D=1)
    args |= {"threshold": torch.tensor(1 - torch.finfo(dtype).eps / 2, dtype=torch.float64)}
    args["squared_norm"] += 1e4
    for _ in range(20):
        args["distance"] = 1 + draw.uniform(300)
        args["distance"][[0, 200, 297, 298, 299]] = 0.0
        args["distance"][256 + int(draw.integers(40, 1)) :] = 0.0
        last = int(args["distance"].nonzero()[-1])
        assert int(outcome(op, op, cast(op, args, dtype, device=device)).values["result 0"]) == last


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.98, 1 - 2**-24])
def test_draws_from_many_rows(threshold: float, dtype: torch.dtype, device: str, draw: Draw) -> None:
    """Most distances are zero, in the middle and at both ends."""
    N = 40_000
    args = example("badge_step_", N=N, D=1, C=1) | {"threshold": torch.tensor(threshold, dtype=torch.float64)}
    args["squared_norm"] += 1e4
    distance = torch.zeros(N, dtype=torch.float64)
    distance[37:2000], distance[20_001:39_000] = 1 + draw.uniform(1963), draw.uniform(18_999)
    args = cast(op, args | {"distance": distance}, dtype, device=device)
    drawn = outcome(op, op, args).values["result 0"].cpu()
    assert torch.equal(drawn, outcome(op.reference, op, args).values["result 0"].cpu())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("D", [3, 67, 260])
def test_a_centre_and_its_copies_have_distance_zero(
    scale: float, D: int, dtype: torch.dtype, device: str, draw: Draw
) -> None:
    """Computed norms and products round differently, and must still cancel."""
    pool, gradient = scale * draw.normal(40, D), draw.normal(40, 10)
    pool[[7, 31]], gradient[[7, 31]] = pool[2].clone(), gradient[2].clone()
    args = from_centre(pool, gradient, 2, torch.full((40,), torch.inf, dtype=torch.float64), 0.5)
    args = cast(op, args, dtype, device=device)
    norms = args["gradient"].square().sum(1) * args["pool"].square().sum(1)
    distance = outcome(op, op, args | {"squared_norm": norms, "centre_norm": norms[2]}).values["distance"].cpu()
    assert distance[[2, 7, 31]].tolist() == [0.0] * 3
    others = [n for n in range(40) if n not in {2, 7, 31}]
    wanted = outcome(op.reference, op, cast(op, args, torch.float64, device="cpu")).values["distance"]
    torch.testing.assert_close(distance[others].double(), wanted[others], rtol=100 * FLOORS[dtype], atol=0)


@pytest.mark.parametrize("threshold", [0.0, 0.999])
def test_no_row_is_drawn_if_all_coincide_with_a_centre(threshold: float, dtype: torch.dtype, device: str) -> None:
    args = example("badge_step_") | {"threshold": torch.tensor(threshold, dtype=torch.float64)}
    args["distance"] *= 0
    done = assert_within_budget(op, args, dtype, device=device)
    assert int(done.values["result 0"]) == -1
    assert not done.values["distance"].any()


def test_empty_pool(dtype: torch.dtype, device: str) -> None:
    assert int(op(**cast(op, example("badge_step_", N=0), dtype, device=device))) == -1


def test_distances_only_fall(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("badge_step_", N=67), dtype, device=device)
    done = outcome(op, op, args)
    assert (done.values["distance"] <= args["distance"]).all()
    assert (done.values["distance"] < args["distance"]).any()
    assert (done.values["distance"] >= 0).all()


def test_not_a_number_is_kept(dtype: torch.dtype, device: str) -> None:
    """The caller checks the distances, and finds it there."""
    args = example("badge_step_", N=6)
    args["pool"][3, 0] = float("nan")
    done = outcome(op, op, cast(op, args, dtype, device=device))
    assert done.values["distance"].isnan().tolist() == [False, False, False, True, False, False]
