"""``from_laplace``, with models of the real laplace-torch."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import calibration_error

from lapal_ext import LastLayerLaplace, NotFittedError

# Packages that laplace-torch imports use what torch has deprecated; the category of the warning varies.
DEPRECATED = r"`torch\.jit\.script` is"

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", DEPRECATED)
    laplace = pytest.importorskip("laplace", reason='laplace-torch is missing: pip install "lapal_ext[laplace]"')
    from lapal_ext.interop.laplace import from_laplace

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{DEPRECATED}"),
    pytest.mark.filterwarnings("ignore:By default `link_approx`:UserWarning"),
]

N_FEATURES, N_HIDDEN, N_CLASSES = 6, 32, 4
N_WEIGHTS = N_CLASSES * (N_HIDDEN + 1)
STRUCTURES = ("kron", "diag", "full")

Data = tuple[Tensor, Tensor]


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def sample(count: int, generator: torch.Generator) -> Data:
    """Overlapping clusters, on the corners of a cube."""
    y = torch.arange(count) % N_CLASSES
    corners = 2.0 * torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]])
    x = torch.randn(count, N_FEATURES, generator=generator)
    x[:, :3] = 1.5 * x[:, :3] + corners[y]
    return x, y


@pytest.fixture(scope="module")
def data() -> tuple[Data, Data]:
    generator = torch.Generator().manual_seed(0)
    return sample(200, generator), sample(2000, generator)


@pytest.fixture(scope="module")
def model(data: tuple[Data, Data]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(N_FEATURES, N_HIDDEN), nn.Dropout(0.1), nn.Tanh(), nn.Linear(N_HIDDEN, N_CLASSES)
        )
        train(network, *data[0])
    return network.eval()


@pytest.fixture
def loader(data: tuple[Data, Data]) -> DataLoader:
    return DataLoader(TensorDataset(*data[0]), 64)


def fitted(model: nn.Module, loader: DataLoader, structure: str = "kron", **parameters: Any) -> Any:
    la = laplace.Laplace(
        model, "classification", subset_of_weights="last_layer", hessian_structure=structure, **parameters
    )
    la.fit(loader)
    return la


def features_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model[:-1](x)


class TestPosterior:
    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_map_predictions_are_equal(self, model: nn.Module, loader: DataLoader, data: Any, structure: str) -> None:
        posterior = from_laplace(fitted(model, loader, structure), loader)
        x, _ = data[1]
        with torch.no_grad():
            expected = model(x).softmax(1)
        probabilities = posterior.predict_proba(features_of(model, x), link="plugin")
        torch.testing.assert_close(probabilities, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("structure", STRUCTURES)
    def test_calibration_is_no_worse(self, model: nn.Module, loader: DataLoader, data: Any, structure: str) -> None:
        """Compared with laplace-torch's own predictive, with the same link and the same prior precision."""
        la = fitted(model, loader, structure)
        la.optimize_prior_precision(method="marglik", link_approx="probit")
        x, y = data[1]
        theirs = la(x, link_approx="probit").detach()
        ours = from_laplace(la, loader).predict_proba(features_of(model, x))
        log_losses = [float(-p.gather(1, y[:, None]).log().mean()) for p in (ours, theirs)]
        errors = [float(calibration_error(p, y, "multiclass", num_classes=N_CLASSES)) for p in (ours, theirs)]
        assert log_losses[0] < log_losses[1] + 0.02
        assert errors[0] < errors[1] + 0.02

    @pytest.mark.parametrize("curvature", ["categorical", "gaussian"])
    def test_the_posterior_is_that_of_layer_prior_and_features(
        self, model: nn.Module, loader: DataLoader, data: Any, curvature: str
    ) -> None:
        posterior = from_laplace(fitted(model, loader, prior_precision=3.5), loader, curvature=curvature)
        layer, features = model[-1], features_of(model, data[0][0])
        expected = LastLayerLaplace(layer.weight, 3.5, curvature, bias=layer.bias).fit(features)
        assert posterior.prior_precision == 3.5
        torch.testing.assert_close(posterior.covariance, expected.covariance)
        torch.testing.assert_close(posterior.precision, expected.precision)

    def test_labels_are_absorbed_afterwards(self, model: nn.Module, loader: DataLoader, data: Any) -> None:
        posterior = from_laplace(fitted(model, loader), loader)
        x, y = data[1]
        features = features_of(model, x)
        before = nn.functional.nll_loss(posterior.predict_proba(features[200:]).log(), y[200:])
        posterior.update(features[:200], y[:200])
        after = nn.functional.nll_loss(posterior.predict_proba(features[200:]).log(), y[200:])
        assert after < before

    def test_batches_may_be_mappings(self, model: nn.Module, loader: DataLoader) -> None:
        class OfMappings(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = model

            def forward(self, batch: dict[str, Tensor]) -> Tensor:
                return self.inner(batch["input_ids"])

        batches = [{"input_ids": x, "labels": y} for x, y in loader]
        batches_of_dataset = DataLoader(batches, batch_size=None)
        la = laplace.Laplace(OfMappings(), "classification", subset_of_weights="last_layer", hessian_structure="kron")
        la.fit(batches_of_dataset)
        expected = from_laplace(fitted(model, loader), loader)
        torch.testing.assert_close(from_laplace(la, batches_of_dataset).covariance, expected.covariance)

    def test_training_mode_makes_no_difference(self, model: nn.Module, loader: DataLoader) -> None:
        la = fitted(model, loader)
        expected = from_laplace(la, loader)
        la.model.train()
        assert torch.equal(from_laplace(la, loader).covariance, expected.covariance)


class TestPriorPrecision:
    def test_different_prior_precisions_must_be_replaced_by_one(self, model: nn.Module, loader: DataLoader) -> None:
        la = fitted(model, loader, "diag", prior_precision=torch.linspace(1.0, 2.0, N_WEIGHTS))
        with pytest.raises(
            ValueError, match=r"^prior_precision must be given where la has several, got 132 from 1 to 2$"
        ):
            from_laplace(la, loader)
        assert from_laplace(la, loader, prior_precision=1.25).prior_precision == 1.25

    def test_equal_prior_precisions_count_as_one(self, model: nn.Module, loader: DataLoader) -> None:
        la = fitted(model, loader, "full", prior_precision=torch.full((N_WEIGHTS,), 2.0))
        assert from_laplace(la, loader).prior_precision == 2.0


class TestErrors:
    def test_all_layers(self, model: nn.Module, loader: DataLoader) -> None:
        la = laplace.Laplace(model, "classification", subset_of_weights="all", hessian_structure="diag")
        with pytest.raises(TypeError, match=r"^la must be made with subset_of_weights='last_layer', got DiagLaplace"):
            from_laplace(la, loader)
        with pytest.raises(TypeError, match=r"^la must be made with .*, got Sequential"):
            from_laplace(model, loader)

    @pytest.mark.parametrize("last_layer_name", [None, "3"])
    def test_not_fitted(self, model: nn.Module, loader: DataLoader, last_layer_name: str | None) -> None:
        la = laplace.Laplace(model, "classification", subset_of_weights="last_layer", last_layer_name=last_layer_name)
        with pytest.raises(NotFittedError, match=r"^la must be fitted"):
            from_laplace(la, loader)

    def test_regression(self, model: nn.Module, loader: DataLoader) -> None:
        la = laplace.Laplace(model, "regression", subset_of_weights="last_layer")
        with pytest.raises(ValueError, match=r"^la must have the likelihood 'classification', got 'regression'"):
            from_laplace(la, loader)

    @pytest.mark.parametrize(
        ("parameters", "says"),
        [({"temperature": 0.5}, "temperature 1, got 0.5"), ({"prior_mean": 1.0}, "prior mean 0")],
    )
    def test_what_this_posterior_does_not_have(
        self, model: nn.Module, loader: DataLoader, parameters: dict[str, float], says: str
    ) -> None:
        with pytest.raises(ValueError, match=rf"^la must have the {says}"):
            from_laplace(fitted(model, loader, **parameters), loader)

    def test_no_batch(self, model: nn.Module, loader: DataLoader) -> None:
        with pytest.raises(ValueError, match=r"^loader must hold at least one batch"):
            from_laplace(fitted(model, loader), [])
