"""The posterior as the last layer of a model, and its mean written back into that layer."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lapal_ext import LastLayerLaplace, NotPSDError
from lapal_ext.features import extract
from tests.draws import Draw
from tests.problems import make_problem

D, C = 7, 4
NAMES = ("mean", "centre", "scale", "covariance", "precision")


class Net(nn.Module):
    """Two layers, the second of which is to be replaced."""

    def __init__(self, draw: Draw, dtype: torch.dtype, *, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.utils.skip_init(nn.Linear, 5, D, dtype=dtype)
        self.fc: nn.Module = nn.utils.skip_init(nn.Linear, D, C, bias=bias, dtype=dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.5 * draw.normal(*parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.body(x)) + 1.0)


def pair(draw: Draw, dtype: torch.dtype, *, bias: bool = True, standardize: bool = True) -> tuple[Net, Net, Tensor]:
    """A model, a copy of it with a posterior around its last layer in place of the layer, and inputs."""
    plain, x = Net(draw, dtype, bias=bias), draw.normal(40, 5).to(dtype)
    features = extract(plain, x, dtype=dtype).features
    posterior = LastLayerLaplace.from_linear(plain.fc, features, 10.0, standardize=standardize)
    replaced = copy.deepcopy(plain)
    replaced.fc = posterior
    return plain, replaced, x


def close(one: Tensor, other: Tensor) -> None:
    factor = 1e-5 if one.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(one, other, rtol=factor, atol=factor)


# As the last layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_posterior_gives_what_the_layer_gave(draw: Draw, dtype: torch.dtype, bias: bool, standardize: bool) -> None:
    plain, replaced, x = pair(draw, dtype, bias=bias, standardize=standardize)
    gradients = []
    for model in (plain, replaced):
        rows = x.clone().requires_grad_()
        model(rows).square().sum().backward()
        gradients.append((rows.grad, model.body.weight.grad))
    close(replaced(x), plain(x))
    for with_posterior, with_layer in zip(*reversed(gradients), strict=True):
        close(with_posterior, with_layer)
    assert len(list(replaced.parameters())) == 2


@pytest.mark.parametrize("shape", [(D,), (2, 3, D), (0, D)], ids=str)
def test_features_of_any_shape_are_accepted_as_by_a_layer(draw: Draw, shape: tuple[int, ...]) -> None:
    plain, replaced, _ = pair(draw, torch.float64)
    features = draw.normal(*shape)
    close(replaced.fc(features), plain.fc(features))


@pytest.mark.parametrize("features", [torch.zeros(3, D + 1), torch.zeros(D, 1), torch.zeros(())])
def test_features_of_another_length_are_refused(draw: Draw, features: Tensor) -> None:
    _, replaced, _ = pair(draw, torch.float64)
    with pytest.raises(ValueError, match=rf"^features must have shape \(\.\.\., {D}\) to match mean \(4, 8\), got \("):
        replaced.fc(features)


@pytest.mark.parametrize(
    ("features", "error", "says"),
    [
        (torch.zeros(3, D), TypeError, r"must be torch\.float64 like mean, got torch\.float32"),
        (torch.zeros(3, D, dtype=torch.int64), TypeError, r"must be torch\.float64 like mean, got torch\.int64"),
        (np.zeros((3, D)), TypeError, r"must be a torch\.Tensor, got ndarray"),
        (None, TypeError, r"must be a torch\.Tensor, got NoneType"),
        (torch.zeros(3, D).to_sparse(), TypeError, r"must be a dense tensor, got layout torch\.sparse_coo"),
        (torch.zeros(3, D, device="meta"), ValueError, "must be on cpu like mean, got meta"),
    ],
)
def test_other_wrong_features_are_refused(draw: Draw, features: Any, error: type[Exception], says: str) -> None:
    _, replaced, _ = pair(draw, torch.float64)
    with pytest.raises(error, match=f"^features {says}$"):
        replaced.fc(features)


def test_mixed_precision_is_that_of_a_layer(draw: Draw) -> None:
    plain, replaced, x = pair(draw, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with_posterior, with_layer = replaced(x), plain(x)
    assert with_posterior.dtype == with_layer.dtype == torch.bfloat16
    torch.testing.assert_close(with_posterior, with_layer, rtol=0.03, atol=0.05)


def test_an_update_changes_the_output_of_the_model(draw: Draw, dtype: torch.dtype) -> None:
    _, replaced, x = pair(draw, dtype)
    features = torch.relu(replaced.body(x)).detach() + 1.0
    before = replaced(x).detach()
    replaced.fc.update(features[:9], draw.integers(C, 9))
    assert not torch.allclose(replaced(x), before, atol=1e-3)
    close(replaced(x).detach(), replaced.fc.predict_logits(features))


MOVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "double": lambda model: model.double(),
    "to": lambda model: model.to(torch.float64),
    "deepcopy": copy.deepcopy,
    "train": lambda model: model.train(),
    "there and back": lambda model: model.double().float(),
}


@pytest.mark.parametrize("move", MOVES)
def test_it_moves_with_its_model(draw: Draw, move: str) -> None:
    """With rows that the precision does not contain yet, which must move too."""
    _, replaced, x = pair(draw, torch.float32)
    features = torch.relu(replaced.body(x)).detach() + 1.0
    replaced.fc.update(features[:3], draw.integers(C, 3))
    expected, precision = replaced(x).detach().double(), replaced.fc.clone().precision.double()
    moved: Any = MOVES[move](replaced)
    dtype = moved.body.weight.dtype
    assert {buffer.dtype for buffer in moved.fc.buffers()} == {dtype}
    torch.testing.assert_close(moved(x.to(dtype)).detach().double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moved.fc.precision.double(), precision, rtol=1e-6, atol=1e-6)
    assert moved.fc.drift() < 1e-5


def test_a_copy_shares_nothing(draw: Draw) -> None:
    _, replaced, x = pair(draw, torch.float64)
    copied = copy.deepcopy(replaced)
    before = copied(x).detach().clone()
    replaced.fc.update(draw.normal(5, D), draw.integers(C, 5))
    assert torch.equal(copied(x).detach(), before)


def test_its_state_is_part_of_the_state_of_its_model(draw: Draw) -> None:
    plain, replaced, x = pair(draw, torch.float64)
    replaced.fc.class_names = ["a", "b", "c", "d"]
    replaced.fc.update(draw.normal(5, D), draw.integers(C, 5))
    outer = nn.ModuleDict({"net": replaced})
    state = outer.state_dict()
    names = {f"net.fc.{name}" for name in ("mean", "covariance", "precision", "centre", "scale", "_extra_state")}
    assert names | {"net.body.weight", "net.body.bias"} == set(state)
    blank = copy.deepcopy(plain)
    blank.fc = LastLayerLaplace(torch.zeros(C, D, dtype=torch.float64), bias=torch.zeros(C, dtype=torch.float64))
    nn.ModuleDict({"net": blank}).load_state_dict(state)
    assert torch.equal(blank(x), replaced(x))
    assert torch.equal(blank.fc.covariance, replaced.fc.covariance)
    assert (blank.fc.fitted, blank.fc.class_names) == (True, ("a", "b", "c", "d"))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph(draw: Draw, backend: str) -> None:
    """Without a break, with gradients, and with an update between two calls."""
    _, replaced, x = pair(draw, torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(replaced, fullgraph=True, backend=backend)
    close(compiled(x), replaced(x))
    replaced.fc.update(draw.normal(5, D), draw.integers(C, 5))
    close(compiled(x), replaced(x))
    gradients = []
    for model in (compiled, replaced):
        rows = x.clone().requires_grad_()
        model(rows).square().sum().backward()
        gradients.append(rows.grad)
    close(*gradients)
    replaced.fc.add_class()
    assert compiled(x).shape == (40, C + 1)
    close(compiled(x), replaced(x))
    explained = torch._dynamo.explain(replaced)(x)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


# Back into the layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_mean_goes_back_into_the_models_own_layer(
    draw: Draw, dtype: torch.dtype, bias: bool, standardize: bool
) -> None:
    plain, replaced, x = pair(draw, dtype, bias=bias, standardize=standardize)
    layer, weight, storage = plain.fc, plain.fc.weight, plain.fc.weight.data_ptr()
    optimizer = torch.optim.SGD(plain.parameters())
    replaced.fc.update(draw.normal(5, D).to(dtype), draw.integers(C, 5))
    assert not torch.allclose(plain(x), replaced(x), atol=1e-3)
    assert replaced.fc.to_linear(out=layer) is layer
    close(plain(x), replaced(x))
    assert plain.fc is layer
    assert layer.weight is weight
    assert layer.weight.data_ptr() == storage  # so that an optimizer, or a layer that shares it, sees the new weights
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert any(weight is parameter for group in optimizer.param_groups for parameter in group["params"])


def test_nan_never_reaches_the_layer(draw: Draw) -> None:
    plain, replaced, x = pair(draw, torch.float64)
    before = plain(x)
    replaced.fc.mean[1, -1] = float("nan")  # in the bias, which is written last
    with pytest.raises(ValueError, match=r"^mean must give results that are finite"):
        replaced.fc.to_linear(out=plain.fc)
    assert torch.equal(plain(x), before)


def test_a_layer_that_computes_its_weight_is_refused(draw: Draw) -> None:
    """Writing to a computed weight would have no effect, without an error."""
    plain, replaced, _ = pair(draw, torch.float64)
    layer = weight_norm(copy.deepcopy(plain.fc))
    before = layer(torch.ones(1, D, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"^out\.weight must be a torch\.nn\.Parameter, got one that is computed"):
        replaced.fc.to_linear(out=layer)
    assert torch.equal(layer(torch.ones(1, D, dtype=torch.float64)), before)


def expanded(layer: nn.Linear, name: str) -> nn.Linear:
    value = getattr(layer, name).detach()
    setattr(layer, name, nn.Parameter(value[:1].expand_as(value)))
    return layer


@torch.inference_mode()
def inferred(layer: nn.Linear) -> nn.Linear:
    layer.bias = nn.Parameter(layer.bias.clone())
    return layer


def sparse(layer: nn.Linear) -> nn.Linear:
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda layer: expanded(layer, "weight"), ValueError, "weight must have memory for each of its values"),
        (lambda layer: expanded(layer, "bias"), ValueError, "bias must have memory for each of its values"),
        (inferred, ValueError, r"bias must be writable, got one made in torch\.inference_mode"),
        (sparse, TypeError, "weight must be a dense tensor"),
        (lambda _: nn.LazyLinear(C), ValueError, "weight must have a shape, got a lazy parameter"),
    ],
)
def test_a_layer_that_cannot_be_written_to_is_refused(
    draw: Draw, change: Callable[[nn.Linear], nn.Linear], error: type[Exception], says: str
) -> None:
    """It is refused before an entry is written: a new weight with the old bias would be wrong."""
    plain, replaced, _ = pair(draw, torch.float64)
    layer = change(copy.deepcopy(plain.fc))
    with pytest.raises(error, match=rf"^out\.{says}"):
        replaced.fc.to_linear(out=layer)
    if not isinstance(layer, nn.LazyLinear):
        assert torch.equal(layer.weight.to_dense()[0], plain.fc.weight[0])


class TestBuffers:
    """The precision is no buffer: it follows the covariance, however that changes."""

    @staticmethod
    def updated() -> LastLayerLaplace:
        made = make_problem()
        return made.posterior.update(made.pool[:8], made.labels[:8])

    def test_copying_the_buffers_copies_the_posterior(self) -> None:
        source, target = self.updated(), make_problem().posterior
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
        torch.testing.assert_close(target.precision, source.precision, rtol=1e-9, atol=1e-9)
        assert target.drift() < 1e-9

    def test_pending_rows_of_the_target_are_dropped(self) -> None:
        source, target = make_problem().posterior, self.updated()
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)
        torch.testing.assert_close(target.precision, source.precision, rtol=1e-9, atol=1e-9)

    def test_the_precision_is_in_the_state_and_no_buffer(self) -> None:
        parent = nn.Sequential(self.updated())
        assert [name for name, _ in parent.named_buffers()] == [f"0.{name}" for name in NAMES if name != "precision"]
        assert {f"0.{name}" for name in NAMES} < set(parent.state_dict())
        assert parent.state_dict()["0.precision"].equal(parent[0].precision)

    def test_a_moving_average_keeps_covariance_and_precision_inverse(self) -> None:
        """If both were averaged, they would no longer be inverses of each other."""
        made = make_problem()
        model = nn.Sequential(made.posterior)
        average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
        for start in range(0, 40, 10):
            made.posterior.update(made.pool[start : start + 10], made.labels[start : start + 10])
            average.update_parameters(model)
        averaged = average.module[0]
        assert not torch.allclose(averaged.covariance, made.posterior.covariance, rtol=1e-3)
        assert averaged.drift() < 1e-9
        assert made.posterior.drift() < 1e-9
        averaged.update(made.pool[40:50], made.labels[40:50])
        assert averaged.drift() < 1e-9

    def test_the_precision_follows_a_replaced_covariance(self) -> None:
        model = self.updated()
        model.covariance = 2.0 * model.covariance
        assert model.drift() < 1e-9
        model.covariance *= 3.0
        assert model.drift() < 1e-9
        loaded = make_problem().posterior
        loaded.load_state_dict(model.state_dict())
        assert loaded.precision.equal(model.precision)
        torch.testing.assert_close(loaded.covariance @ loaded.precision, torch.eye(13, dtype=torch.float64))

    def test_a_covariance_without_an_inverse_raises(self) -> None:
        model = self.updated()
        model.covariance.zero_()
        with pytest.raises(NotPSDError, match="singular"):
            _ = model.precision

    def test_pickling_keeps_the_precision(self) -> None:
        model = self.updated()
        again = pickle.loads(pickle.dumps(model))
        assert again.precision.equal(model.precision)
        assert again.update(draw_rows(), torch.zeros(3, dtype=torch.int64)).drift() < 1e-9


def draw_rows() -> Tensor:
    return Draw(3).normal(3, 12)


def test_print_shows_sizes_and_state() -> None:
    made = make_problem()
    made.posterior.class_names = ["a", "b", "c", "d"]
    made.posterior.update(made.pool[:3], made.labels[:3])
    assert repr(made.posterior) == (
        "LastLayerLaplace(12 features, 4 classes (a, b, c, …), prior precision 10, categorical curvature, with bias, "
        "fitted to 16 rows, 3 labels absorbed, float64 on cpu)"
    )
    assert "not fitted, 0 labels absorbed" in repr(LastLayerLaplace(torch.zeros(2, 3)))


def test_the_class_has_documented_names_alone() -> None:
    methods = {
        "from_linear", "fit_map", "refit", "untrained", "optimize_prior_precision", "fit", "add_class", "update",
        "condition_on", "refresh", "drift", "predict_logits", "predict_latent", "predict_proba",
        "log_marginal_likelihood", "to_linear", "clone", "save", "load",
    }  # fmt: skip
    properties = {"precision", "standardization", "num_classes", "num_features", "class_names"}
    names = {name for name in dir(LastLayerLaplace) if not name.startswith("_") and name not in dir(nn.Module)}
    assert names == methods | properties
    assert [name for name in names if not getattr(LastLayerLaplace, name).__doc__] == []
    attributes = (LastLayerLaplace.__doc__ or "").partition("Attributes:")[2]
    assert [name for name in properties if f"\n        {name}: " not in attributes] == []


class TestLoadingIntoAParent:
    """As torch does it: missing keys are reported, and an error names the part of the model."""

    @staticmethod
    def parent() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 12, dtype=torch.float64), make_problem().posterior)

    def test_a_state_with_the_replaced_layer_has_missing_keys(self) -> None:
        old = nn.Sequential(nn.Linear(12, 12, dtype=torch.float64), nn.Linear(12, 4, dtype=torch.float64))
        new = self.parent()
        before = new[1].mean.clone()
        keys = new.load_state_dict(old.state_dict(), strict=False)
        assert {"1.mean", "1.covariance", "1._extra_state"} <= set(keys.missing_keys)
        assert new[0].weight.equal(old[0].weight)
        assert new[1].mean.equal(before)
        with pytest.raises(RuntimeError, match="Missing key"):
            new.load_state_dict(old.state_dict())

    def test_values_that_do_not_fit_raise(self) -> None:
        state = self.parent().state_dict()
        state["1.mean"] = torch.cat([state["1.mean"], state["1.mean"][:1]])
        new = self.parent()
        before = new[1].mean.clone()
        with pytest.raises(RuntimeError, match=r"1: state_dict.*mean.* must have shape"):
            new.load_state_dict(state)
        assert new[1].mean.equal(before)
