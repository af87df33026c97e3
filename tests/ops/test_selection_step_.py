import pytest
import torch
from torch import Tensor

from lapal_ext import ops, utilities
from tests.budget import Outcome, assert_exact, assert_within_budget, outcome
from tests.draws import Arguments, Draw, cast
from tests.native import require_native
from tests.ops import exact_softmax
from tests.ops.dense_posterior import DensePosterior, bisected_root, curvature_weight, one_hot, softmax
from tests.ops.examples import example

op = ops.selection_step_
KAPPA = 0.4
every_kind = pytest.mark.parametrize("kind", utilities.UTILITIES)
HALF = [torch.bfloat16, torch.float16]


def by_definition(logits: Tensor, variance: float, scale: float, kind: str, kappa: float) -> float:
    if kind == "variance":
        return variance
    return exact_softmax.utility([float(z) / (1 + kappa * variance) ** 0.5 for z in logits], kind, scale)


@every_kind
@pytest.mark.parametrize(
    ("step", "curvature", "gamma"), [("line_search", "categorical", 10.0), ("newton", "gaussian", 1.0)]
)
def test_reference_follows_the_dense_posterior(kind: str, step: str, curvature: str, gamma: float, draw: Draw) -> None:
    """Five picks: logits, variances, utility and winner, against fresh inverses."""
    C, D, N = 4, 6, 12
    mean, covariance, pool = draw.normal(C, D), draw.covariance(D), draw.normal(N, D)
    labels, posterior = draw.integers(C, N), DensePosterior(mean, covariance)
    zero = torch.zeros((), dtype=torch.float64)
    u, g, beta = torch.zeros(D, dtype=torch.float64), torch.zeros(C, dtype=torch.float64), zero
    logits, variance = pool @ mean.T, ((pool @ covariance) * pool).sum(1)
    taken, norms, picks = torch.zeros(N, dtype=torch.bool), pool.norm(dim=1), []
    for _ in range(5):
        index, best = op.reference(pool, u, zero, g, beta, logits, variance, taken, norms, kind, KAPPA)
        assert_exact(logits, torch.stack([posterior.mean @ phi for phi in pool]))
        variances = [posterior.variance(phi) for phi in pool]
        assert_exact(variance, torch.tensor(variances, dtype=torch.float64))
        wanted = [
            -1.0 if n in picks else by_definition(posterior.mean @ pool[n], variances[n], float(norms[n]), kind, KAPPA)
            for n in range(N)
        ]
        pick = max(range(N), key=wanted.__getitem__)
        assert int(index) == pick
        assert_exact(best, torch.tensor(wanted[pick], dtype=torch.float64))
        picks.append(pick)
        assert taken.nonzero()[:, 0].tolist() == sorted(picks)
        phi, y = pool[pick], int(labels[pick])
        u, v, z = posterior.covariance @ phi, posterior.variance(phi), posterior.mean @ phi
        a = gamma / (1 + curvature_weight(z, curvature) * v) if step == "newton" else bisected_root(z, v, y, gamma)
        g = a * (one_hot(y, C) - softmax(z))
        s = posterior.absorb(phi, y, gamma, step, curvature)
        beta = torch.tensor(s / (1 + s * v), dtype=torch.float64)


def test_offset_is_one_more_constant_feature() -> None:
    args = example("selection_step_")
    column = torch.tensor([sum(phi * args["u"]) + args["offset"] for phi in args["pool"]])
    done = outcome(op.reference, op, args)
    assert_exact(done.values["logits"], args["logits"] + torch.outer(column, args["g"]))
    assert_exact(done.values["variance"], args["variance"] - args["beta"] * column * column)


SIZES = [
    {"N": 1, "D": 1, "C": 2},
    {"N": 37, "D": 5, "C": 2},
    {"N": 301, "D": 67, "C": 3},
    {"N": 129, "D": 130, "C": 10},
    {"N": 17, "D": 33, "C": 150},
    {"N": 9, "D": 3, "C": 1000},
]


@every_kind
@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_budget(kind: str, link: str, sizes: dict[str, int], dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_", **sizes) | {"kind": kind}
    if link == "plugin" and kind == "variance":
        args["kappa"] = 0.0
    elif link == "plugin":
        args["variance"] = None
    args["u"] /= sizes["D"] ** 0.5
    assert_within_budget(op, args, dtype, device=device)


@every_kind
@pytest.mark.parametrize("size", [80.0, 400.0])
@pytest.mark.parametrize("C", [2, 11])
def test_budget_of_extreme_logits(kind: str, size: float, C: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    args = example("selection_step_", N=45, C=C) | {"kind": kind}
    args["logits"] = size * (2 * draw.uniform(45, C) - 1)
    assert_within_budget(op, args, dtype, device=device, logit_size=size)


@every_kind
@pytest.mark.parametrize("pool_dtype", [*HALF, torch.float32, torch.float64])
def test_pool_may_be_stored_in_another_precision(
    kind: str, pool_dtype: torch.dtype, dtype: torch.dtype, device: str
) -> None:
    args = example("selection_step_", N=67, D=19) | {"kind": kind}
    assert_within_budget(op, args, dtype, pool_dtype=pool_dtype, device=device)


@every_kind
def test_class_major_logits(kind: str, dtype: torch.dtype, device: str) -> None:
    """The fast layout is written in place, with the same results as the other one."""
    args = cast(op, example("selection_step_", N=67) | {"kind": kind}, dtype, device=device)
    row_major = outcome(op, op, args)
    class_major = outcome(op, op, args | {"logits": args["logits"].T.contiguous().T})
    assert class_major.values["logits"].stride() == (1, 67)
    for name, value in row_major.values.items():
        torch.testing.assert_close(class_major.values[name], value)


def call(args: Arguments, dtype: torch.dtype, device: str) -> Outcome:
    return outcome(op, op, cast(op, args, dtype, device=device))


def pick_of(done: Outcome) -> tuple[int, float]:
    return int(done.values["result 0"]), float(done.values["result 1"])


@every_kind
def test_first_pick_changes_nothing_but_taken(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_") | {"kind": kind}
    for name in ("u", "g", "offset", "beta"):
        args[name] = torch.zeros_like(args[name])
    done, rounded = call(args, dtype, device), cast(op, args, dtype, device=device)
    for name in ("logits", "variance"):
        assert torch.equal(done.values[name], rounded[name])
    index, _ = pick_of(done)
    wanted = args["taken"].clone()
    assert not wanted[index]
    wanted[index] = True
    assert torch.equal(done.values["taken"].cpu(), wanted)


@every_kind
def test_first_pick_does_not_read_the_pool(kind: str, dtype: torch.dtype, device: str) -> None:
    require_native("selection_step_", device)
    args = example("selection_step_") | {"kind": kind}
    for name in ("u", "g", "offset", "beta"):
        args[name] = torch.zeros_like(args[name])
    done = call(args, dtype, device)
    assert pick_of(call(args | {"pool": args["pool"] * torch.nan}, dtype, device)) == pick_of(done)


@every_kind
@pytest.mark.parametrize("D", [1, 7, 67, 130])
def test_duplicates_tie_to_the_lowest_index(kind: str, D: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    """Rows of only five kinds, scattered: equal rows stay equal to the bit; the first free one wins."""
    N, C = 203, 3
    copies = draw.integers(5, N)
    few = example("selection_step_", N=5, D=D, C=C)
    args = few | {name: few[name][copies] for name in ("pool", "logits", "variance", "scale")}
    args |= {"kind": kind, "taken": draw.uniform(N) < 0.3}
    done = call(args, dtype, device)
    logits, variance = done.values["logits"].cpu(), done.values["variance"].cpu()
    for copy in range(5):
        same = copies == copy
        assert (logits[same] == logits[same][0]).all()
        assert (variance[same] == variance[same][0]).all()
    index, _ = pick_of(done)
    assert index == int(((copies == copies[index]) & ~args["taken"]).nonzero()[0])


@pytest.mark.parametrize("pool_dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("D", [67, 264])
def test_a_shard_moves_its_rows_like_the_whole_pool(
    D: int, pool_dtype: torch.dtype, dtype: torch.dtype, device: str
) -> None:
    """To the bit, however its memory is aligned: ranks must agree on rows that tie."""
    args = cast(op, example("selection_step_", N=61, D=D), dtype, pool_dtype, device)
    whole = outcome(op, op, args)
    rows = {name: args[name][20:] for name in ("logits", "variance", "taken", "scale")}
    # The NaN between rows must not be read. In the first of these pools every row starts at a multiple of 16 bytes.
    space = args["pool"].new_full((41, (D + 15) // 8 * 8), torch.nan)
    spaced = [space.clone()[:, start : start + D] for start in (0, 1)]
    for pool in (args["pool"][20:], *(rows.copy_(args["pool"][20:]) for rows in spaced)):
        shard = outcome(op, op, args | rows | {"pool": pool})
        for name in ("logits", "variance"):
            assert torch.equal(shard.values[name], whole.values[name][20:]), name


@every_kind
def test_all_equal_picks_the_first_free(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_", N=100)
    args |= {name: args[name][:1].expand_as(args[name]).clone() for name in ("pool", "logits", "variance", "scale")}
    args["taken"][:] = False
    args["taken"][:3] = True
    assert pick_of(call(args | {"kind": kind}, dtype, device))[0] == 3


@every_kind
def test_all_taken(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_") | {"kind": kind}
    args["taken"][:] = True
    done = assert_within_budget(op, args, dtype, device=device)  # the buffers are still brought up to date
    assert pick_of(done) == (-1, float("-inf"))
    assert done.values["taken"].all()


@every_kind
def test_empty_pool(kind: str, dtype: torch.dtype, device: str) -> None:
    assert pick_of(call(example("selection_step_", N=0) | {"kind": kind}, dtype, device)) == (
        -1,
        float("-inf"),
    )


@every_kind
def test_the_last_free_row_is_picked(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_") | {"kind": kind}
    args["taken"][:] = True
    args["taken"][8] = False
    done = call(args, dtype, device)
    assert pick_of(done)[0] == 8
    assert done.values["taken"].all()


@every_kind
def test_not_a_number_wins(kind: str, dtype: torch.dtype, device: str) -> None:
    """The lowest free one of several; one that is taken does not count."""
    args = example("selection_step_", N=67) | {"kind": kind}
    args["taken"][:] = False
    args["taken"][5] = True
    args["pool"][[5, 41, 44, 66], 0] = float("nan")
    done = assert_within_budget(op, args, dtype, device=device)
    index, utility = pick_of(done)
    assert index == 41
    assert utility != utility
    assert done.values["taken"].nonzero()[:, 0].tolist() == [5, 41]


@every_kind
def test_not_a_number_that_is_taken_is_ignored(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_") | {"kind": kind}
    args["taken"][:] = False
    args["taken"][5] = True
    args["pool"][5] = float("nan")
    index, utility = pick_of(call(args, dtype, device))
    assert index not in {-1, 5}
    assert utility == utility


def test_negative_variance_counts_as_zero_in_the_link(dtype: torch.dtype, device: str) -> None:
    args = example("selection_step_") | {"kind": "margin"}
    args["variance"] = -args["variance"]
    plugin = call(args | {"variance": None}, dtype, device)
    done = assert_within_budget(op, args, dtype, device=device)
    assert pick_of(done) == pytest.approx(pick_of(plugin), rel=1e-6)


@pytest.mark.parametrize(("kind", "absent"), [("variance", "variance"), ("gradient_norm", "scale")])
def test_missing_arguments_leave_the_buffers_alone(kind: str, absent: str, dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("selection_step_") | {"kind": kind, absent: None}, dtype, device=device)
    before = {name: args[name].clone() for name in ("logits", "taken")}
    with pytest.raises(ValueError, match=f"{absent} must be given for utility"):
        op(**args)
    for name, was in before.items():
        assert torch.equal(args[name], was), f"{name} was changed by a call that failed"
