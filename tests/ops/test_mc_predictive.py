import math

import pytest
import torch

from lapal_ext import ops
from tests.budget import assert_exact, assert_within_budget
from tests.draws import Draw
from tests.ops import exact_softmax
from tests.ops.dense_posterior import loss_by_definition, softmax
from tests.ops.examples import example

op = ops.mc_predictive


@pytest.mark.parametrize("C", [2, 3, 150])
@pytest.mark.parametrize("size", [1.0, 80.0])
def test_reference_is_the_mean_over_samples(C: int, size: float) -> None:
    args = example("mc_predictive", C=C, N=4, S=5)
    args["logits"] *= size
    mean, entropy = op.reference(**args)
    averages = []
    for n in range(4):
        drawn = [args["logits"][n] + math.sqrt(args["variance"][n]) * noise for noise in args["noise"]]
        assert_exact(mean[n], sum(softmax(z) for z in drawn) / 5)
        averages.append(sum(exact_softmax.loss(z.tolist(), 0, "expected_cross_entropy") for z in drawn) / 5)
    assert_exact(entropy, torch.tensor(averages, dtype=torch.float64))


@pytest.mark.parametrize("C", [1, 2, 10, 150, 1000])
@pytest.mark.parametrize("size", [1.0, 80.0, 400.0])
@pytest.mark.parametrize("S", [1, 33])
def test_budget(C: int, size: float, S: int, dtype: torch.dtype, device: str, draw: Draw) -> None:
    args = example("mc_predictive", C=C, N=19, S=S)
    args["logits"] = size * (2 * draw.uniform(19, C) - 1)
    mean, entropy = assert_within_budget(op, args, dtype, device=device, logit_size=size).values.values()
    torch.testing.assert_close(mean.sum(1), torch.ones_like(entropy), rtol=1e-5, atol=0)
    assert (entropy >= 0).all()
    assert (entropy <= math.log(C) + 1e-5).all()


@pytest.mark.parametrize("C", [2, 10, 150])
@pytest.mark.parametrize("deviation", [10.0, 60.0])
def test_budget_of_samples_far_from_the_mean(C: int, deviation: float, dtype: torch.dtype, device: str) -> None:
    """Noise moves the largest logit so far that an exponential relative to that of the mean would overflow."""
    args = example("mc_predictive", C=C, N=35, S=33)
    args["variance"][::2] = deviation**2
    mean, entropy = assert_within_budget(op, args, dtype, device=device, logit_size=3 * deviation).values.values()
    torch.testing.assert_close(mean.sum(1), torch.ones_like(entropy), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variance", [0.0, -2.0])
def test_no_variance_is_the_plugin(variance: float, dtype: torch.dtype, device: str) -> None:
    args = example("mc_predictive")
    args["variance"] = torch.full_like(args["variance"], variance)
    mean, entropy = (x.cpu().double() for x in assert_within_budget(op, args, dtype, device=device).values.values())
    wanted = torch.stack([softmax(z) for z in args["logits"]])
    torch.testing.assert_close(mean, wanted, rtol=1e-5, atol=0)
    each = [loss_by_definition(z, None, "expected_cross_entropy") for z in args["logits"]]
    torch.testing.assert_close(entropy, torch.tensor(each, dtype=torch.float64), rtol=1e-5, atol=0)


def test_no_samples_are_refused() -> None:
    args = example("mc_predictive", C=3, S=0)
    with pytest.raises(ValueError, match=r"^noise must hold at least one sample, got shape \(0, 3\)$"):
        op(**args)


def test_rows_share_the_noise(dtype: torch.dtype, device: str) -> None:
    args = example("mc_predictive", N=2)
    args = args | {name: args[name][[0, 0]] for name in ("logits", "variance")}
    for value in assert_within_budget(op, args, dtype, device=device).values.values():
        assert torch.equal(value[0], value[1])


def test_not_a_number_stays_in_its_row(dtype: torch.dtype, device: str) -> None:
    args = example("mc_predictive", N=4)
    args["logits"][1, 2] = float("nan")
    args["variance"][3] = float("nan")
    mean, entropy = assert_within_budget(op, args, dtype, device=device).values.values()
    assert mean.isnan().all(1).tolist() == [False, True, False, True]
    assert entropy.isnan().tolist() == [False, True, False, True]
