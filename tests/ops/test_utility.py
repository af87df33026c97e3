import pytest
import torch

from lapal_ext import ops, utilities
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw, cast
from tests.ops import exact_softmax
from tests.ops.examples import example

op = ops.utility
every_kind = pytest.mark.parametrize("kind", utilities.UTILITIES)
softmax_kinds = pytest.mark.parametrize("kind", [kind for kind in utilities.UTILITIES if kind != "variance"])
every_link = pytest.mark.parametrize("link", ["plugin", "mean_field"])


@softmax_kinds
@every_link
@pytest.mark.parametrize("C", [2, 3, 10, 150])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_reference_is_the_definition(kind: str, link: str, C: int, size: float) -> None:
    args = example("utility", C=C, N=4) | {"kind": kind} | ({"variance": None} if link == "plugin" else {})
    args["logits"] *= size
    wanted = []
    for n, logits in enumerate(args["logits"]):
        factor = 1.0 if link == "plugin" else (1 + args["kappa"] * float(args["variance"][n])) ** -0.5
        wanted.append(exact_softmax.utility([float(z * factor) for z in logits], kind, float(args["scale"][n])))
    assert_exact(op.reference(**args), torch.tensor(wanted, dtype=torch.float64))


def test_variance_is_itself(dtype: torch.dtype, device: str) -> None:
    args = cast(op, example("utility"), dtype, device=device) | {"kind": "variance"}
    value = op(**args)
    assert torch.equal(value, args["variance"])
    assert value.data_ptr() != args["variance"].data_ptr()


@every_kind
@every_link
@pytest.mark.parametrize("C", [2, 3, 10, 150, 1000])
@pytest.mark.parametrize("size", [1.0, 80.0, 400.0])
def test_budget(kind: str, link: str, C: int, size: float, dtype: torch.dtype, device: str, draw: Draw) -> None:
    if kind == "variance" and link == "plugin":
        link = "mean_field"
    args = example("utility", C=C, N=37) | {"kind": kind} | ({"variance": None} if link == "plugin" else {})
    args["logits"] = size * (2 * draw.uniform(37, C) - 1)
    value = assert_within_budget(op, args, dtype, device=device, logit_size=size, each=True).values["result 0"]
    assert value.isfinite().all()
    assert (value >= 0).all()


@softmax_kinds
def test_confident_rows_rank_correctly(kind: str, dtype: torch.dtype, device: str) -> None:
    """Gaps whose 1 - p_max runs from 1e-9 to 1e-35: all distinct, in the right order, to 1e-5."""
    gaps = torch.linspace(20, 80, 61, dtype=torch.float64)
    args = {
        "logits": torch.stack([gaps, torch.zeros(61, dtype=torch.float64), gaps - 100], 1),
        "variance": None,
        "scale": torch.ones(61, dtype=torch.float64),
        "kind": kind,
        "kappa": 0.4,
    }
    value = op(**cast(op, args, dtype, device=device)).cpu().double()
    wanted = [exact_softmax.utility([g, 0.0, g - 100], kind) for g in gaps.tolist()]
    torch.testing.assert_close(value, torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=0)
    assert (value.diff() < 0).all()


@softmax_kinds
def test_uncertain_rows_score_highest(kind: str, dtype: torch.dtype, device: str) -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [5.0, 0.0, 0.0]], dtype=dtype, device=device)
    value = op(logits, None, torch.ones(3, dtype=dtype, device=device), kind, 0.4)
    assert (value.diff() < 0).all()


def test_missing_arguments_raise(device: str) -> None:
    args = cast(op, example("utility"), torch.float32, device=device)
    with pytest.raises(ValueError, match="variance must be given for utility 'variance'"):
        op(**args | {"kind": "variance", "variance": None})
    with pytest.raises(ValueError, match="scale must be given for utility 'gradient_norm'"):
        op(**args | {"kind": "gradient_norm", "scale": None})


@softmax_kinds
def test_not_a_number_stays_in_its_row(kind: str, dtype: torch.dtype, device: str) -> None:
    args = example("utility", N=5) | {"kind": kind}
    args["logits"][1, 2] = float("nan")
    args["variance"][3] = float("nan")
    value = assert_within_budget(op, args, dtype, device=device).values["result 0"]
    assert value.isnan().tolist() == [False, True, False, True, False]


@softmax_kinds
@pytest.mark.parametrize("C", [2, 9])
@pytest.mark.parametrize("call", [op, op.reference])
def test_an_infinite_logit_gives_nan_in_its_row_alone(call, kind: str, C: int) -> None:
    args = cast(op, example("utility", C=C, N=3), torch.float32) | {"kind": kind, "variance": None}
    args["logits"][1, 0] = float("inf")
    assert call(**args).isfinite().tolist() == [True, False, True]
