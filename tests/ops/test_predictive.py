import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw
from tests.ops import exact_softmax
from tests.ops.examples import example

op = ops.predictive
KAPPA = 0.4


@pytest.mark.parametrize("C", [2, 3, 10, 150])
@pytest.mark.parametrize("link", ["plugin", "mean_field"])
def test_reference_is_the_definition(C: int, link: str) -> None:
    args = example("predictive", C=C) | ({"variance": None} if link == "plugin" else {})
    wanted = []
    for n, logits in enumerate(args["logits"]):
        factor = 1.0 if link == "plugin" else (1 + KAPPA * float(args["variance"][n])) ** -0.5
        powers = [float(z * factor) for z in logits]
        wanted.append([float(p) for p in exact_softmax.probabilities(powers)])
    assert_exact(op.reference(**args), torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("C", [1, 2, 3, 10, 150, 1000])
@pytest.mark.parametrize("size", [1.0, 80.0, 400.0])
@pytest.mark.parametrize("link", ["plugin", "mean_field"])
def test_budget(C: int, size: float, link: str, dtype: torch.dtype, device: str, draw: Draw) -> None:
    args = example("predictive", C=C, N=37) | ({"variance": None} if link == "plugin" else {})
    args["logits"] = size * (2 * draw.uniform(37, C) - 1)
    p = assert_within_budget(op, args, dtype, device=device, logit_size=size, each=True).values["result 0"]
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("gap", [69.0, 80.0])
def test_probabilities_below_1e_30(gap: float, dtype: torch.dtype, device: str) -> None:
    args = {"logits": torch.tensor([[0.0, gap]], dtype=torch.float64), "variance": None, "kappa": KAPPA}
    p = assert_within_budget(op, args, dtype, device=device, each=True).values["result 0"].cpu()
    wanted = float(exact_softmax.probabilities([0.0, gap])[0])
    assert wanted < 1.2e-30
    assert abs(float(p[0, 0]) / wanted - 1) < 1e-5


def test_negative_variance_counts_as_zero(dtype: torch.dtype, device: str) -> None:
    args = example("predictive")
    args["variance"][::2] = -3.0
    p = assert_within_budget(op, args, dtype, device=device).values["result 0"]
    plugin = assert_within_budget(op, args | {"variance": None}, dtype, device=device).values["result 0"]
    torch.testing.assert_close(p[::2], plugin[::2])
    assert not torch.allclose(p[1::2], plugin[1::2])


def test_kappa_zero_is_the_plugin(dtype: torch.dtype, device: str) -> None:
    args = example("predictive")
    p = assert_within_budget(op, args | {"kappa": 0.0}, dtype, device=device).values["result 0"]
    plugin = assert_within_budget(op, args | {"variance": None}, dtype, device=device).values["result 0"]
    torch.testing.assert_close(p, plugin)


@pytest.mark.parametrize("C", [5, 100])
def test_not_a_number_stays_in_its_row(C: int, dtype: torch.dtype, device: str) -> None:
    args = example("predictive", N=4, C=C)
    args["logits"][1, 2] = float("nan")
    args["variance"][3] = float("nan")
    p = assert_within_budget(op, args, dtype, device=device).values["result 0"]
    assert p.isnan().all(1).tolist() == [False, True, False, True]
