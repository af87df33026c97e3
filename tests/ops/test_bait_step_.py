import pytest
import torch

from lapal_ext import ops
from tests.budget import Outcome, assert_exact, assert_within_budget, outcome
from tests.draws import Draw, cast
from tests.native import require_native
from tests.ops.examples import example

op = ops.bait_step_


def test_reference_keeps_the_trace_objective(draw: Draw) -> None:
    """Five picks: every gain against tr(A^-1 F) before and after a fresh inverse."""
    N, D = 15, 6
    pool, s = draw.normal(N, D), draw.uniform(N)
    fisher = sum(weight * torch.outer(phi, phi) for weight, phi in zip(s, pool, strict=True)) / N
    held = torch.linalg.inv(draw.covariance(D))
    inverse = torch.linalg.inv(held)
    h = torch.stack([phi @ inverse @ phi for phi in pool])
    q = torch.stack([phi @ inverse @ fisher @ inverse @ phi for phi in pool])
    zero, taken = torch.zeros((), dtype=torch.float64), torch.zeros(N, dtype=torch.bool)
    u = w = torch.zeros(D, dtype=torch.float64)
    fisher_norm, beta, picks = zero, zero, []
    for _ in range(5):
        index, gain = op.reference(pool, u, zero, w, zero, fisher_norm, beta, s, h, q, taken)
        now = torch.trace(torch.linalg.inv(held) @ fisher)
        gains = [
            float(now - torch.trace(torch.linalg.inv(held + weight * torch.outer(phi, phi)) @ fisher))
            for weight, phi in zip(s, pool, strict=True)
        ]
        assert_exact(s * q / (1 + s * h), torch.tensor(gains, dtype=torch.float64))
        pick = max((n for n in range(N) if n not in picks), key=gains.__getitem__)
        assert int(index) == pick
        assert_exact(gain, torch.tensor(gains[pick], dtype=torch.float64))
        picks.append(pick)
        assert taken.nonzero()[:, 0].tolist() == sorted(picks)
        u = torch.linalg.inv(held) @ pool[pick]
        w = torch.linalg.inv(held) @ fisher @ u
        fisher_norm, beta = u @ fisher @ u, s[pick] / (1 + s[pick] * (pool[pick] @ u))
        held = held + s[pick] * torch.outer(pool[pick], pool[pick])


def test_offsets_are_one_more_constant_feature() -> None:
    args = example("bait_step_")
    along_u = torch.tensor([sum(phi * args["u"]) + args["u_offset"] for phi in args["pool"]])
    along_w = torch.tensor([sum(phi * args["w"]) + args["w_offset"] for phi in args["pool"]])
    done, beta = outcome(op.reference, op, args), args["beta"]
    assert_exact(done.values["h"], args["h"] - beta * along_u**2)
    change = beta**2 * along_u**2 * args["fisher_norm"] - 2 * beta * along_u * along_w
    assert_exact(done.values["q"], args["q"] + change)


@pytest.mark.parametrize(("N", "D"), [(1, 1), (37, 5), (301, 67), (129, 130)])
def test_budget(N: int, D: int, dtype: torch.dtype, device: str) -> None:
    args = example("bait_step_", N=N, D=D)
    args["u"] /= D**0.5
    assert_within_budget(op, args, dtype, device=device)


@pytest.mark.parametrize("pool_dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_pool_may_be_stored_in_another_precision(pool_dtype: torch.dtype, dtype: torch.dtype, device: str) -> None:
    assert_within_budget(op, example("bait_step_", N=67, D=19), dtype, pool_dtype=pool_dtype, device=device)


def call(args: dict, dtype: torch.dtype, device: str) -> Outcome:
    return outcome(op, op, cast(op, args, dtype, device=device))


def pick_of(done: Outcome) -> tuple[int, float]:
    return int(done.values["result 0"]), float(done.values["result 1"])


def test_first_pick_changes_nothing_but_taken(dtype: torch.dtype, device: str) -> None:
    args = example("bait_step_")
    for name in ("u", "w", "u_offset", "w_offset", "fisher_norm", "beta"):
        args[name] = torch.zeros_like(args[name])
    done, rounded = call(args, dtype, device), cast(op, args, dtype, device=device)
    assert torch.equal(done.values["h"], rounded["h"])
    assert torch.equal(done.values["q"], rounded["q"])
    assert int(done.values["taken"].sum()) == int(args["taken"].sum()) + 1


def test_first_pick_does_not_read_the_pool(dtype: torch.dtype, device: str) -> None:
    require_native("bait_step_", device)
    args = example("bait_step_")
    for name in ("u", "w", "u_offset", "w_offset", "fisher_norm", "beta"):
        args[name] = torch.zeros_like(args[name])
    done = call(args, dtype, device)
    assert pick_of(call(args | {"pool": args["pool"] * torch.nan}, dtype, device)) == pick_of(done)


@pytest.mark.parametrize("D", [1, 7, 67, 130])
def test_duplicates_tie_to_the_lowest_index(D: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    copies = draw.integers(5, 203)
    few = example("bait_step_", N=5, D=D)
    args = few | {name: few[name][copies] for name in ("pool", "curvature", "h", "q")}
    args["taken"] = draw.uniform(203) < 0.3
    done = call(args, dtype, device)
    for name in ("h", "q"):
        values = done.values[name].cpu()
        for copy in range(5):
            assert (values[copies == copy] == values[copies == copy][0]).all()
    index, _ = pick_of(done)
    assert index == int(((copies == copies[index]) & ~args["taken"]).nonzero()[0])


def test_all_taken(dtype: torch.dtype, device: str) -> None:
    args = example("bait_step_")
    args["taken"][:] = True
    done = assert_within_budget(op, args, dtype, device=device)
    assert pick_of(done) == (-1, float("-inf"))
    assert done.values["taken"].all()


def test_empty_pool(dtype: torch.dtype, device: str) -> None:
    assert pick_of(call(example("bait_step_", N=0), dtype, device)) == (-1, float("-inf"))


def test_not_a_number_wins_unless_taken(dtype: torch.dtype, device: str) -> None:
    args = example("bait_step_", N=67)
    args["taken"][:] = False
    args["taken"][5] = True
    args["pool"][[5, 41, 66], 0] = float("nan")
    done = assert_within_budget(op, args, dtype, device=device)
    index, gain = pick_of(done)
    assert index == 41
    assert gain != gain
    assert done.values["taken"].nonzero()[:, 0].tolist() == [5, 41]
