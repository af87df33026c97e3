"""The covariance of a fit to few rows, which Woodbury's formula gives without the inverse of a [D, D] matrix."""

import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.likelihood import CURVATURES
from lapal_ext.ops import use_references
from lapal_ext.posterior import last_layer_laplace, precision
from tests.draws import Draw

D = 60


def inverted(*_: object) -> torch.Tensor:
    raise AssertionError("a matrix was inverted")


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("n_rows", [0, 1, 7, 20])
def test_few_rows_need_no_inverse(
    n_rows: int, curvature: str, trusted: bool, dtype: torch.dtype, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = draw.normal(n_rows, D).to(dtype), draw.normal(3, D).to(dtype)
    x[n_rows // 2 :] = x[
        : n_rows - n_rows // 2
    ].clone()  # copies, so that the kernel matrix is singular but for the prior
    trust = draw.uniform(n_rows).to(dtype) if trusted else None
    model = LastLayerLaplace(weight, 0.01, curvature)
    with use_references():
        replaced = model.clone()._fit_covariance(x, trust).covariance
    monkeypatch.setattr(last_layer_laplace, "inverse", inverted)
    model._fit_covariance(x, trust)
    covariance, wide = model.covariance, x.double()
    p = (wide @ weight.double().T).softmax(1).amax(1)
    s = (p * (1.0 - p) if curvature == "categorical" else torch.ones_like(p)) * (1.0 if trust is None else trust)
    expected = torch.linalg.inv(0.01 * torch.eye(D).double() + (wide * s[:, None]).T @ wide)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-11
    for result in (covariance, replaced):
        assert torch.equal(result, result.T)
        torch.testing.assert_close(result.double(), expected, rtol=0.0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize(("n_rows", "prior_precision"), [(21, 1.0), (20, 1e-9)], ids=["more rows", "hardly a prior"])
def test_other_fits_invert(n_rows: int, prior_precision: float, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LastLayerLaplace(draw.normal(3, D), prior_precision)
    monkeypatch.setattr(last_layer_laplace, "inverse", inverted)
    with pytest.raises(AssertionError, match="inverted"):
        model.fit(draw.normal(n_rows, D))


def test_a_tile_of_rows_is_not_all_of_them(draw: Draw) -> None:
    x, weight = draw.normal(40, D), draw.normal(3, D)
    matrix, covariance = precision.precision_matrix(iter([x[:30], x[30:]]), weight, 1.0, "gaussian")
    assert covariance is None
    torch.testing.assert_close(matrix, torch.eye(D).double() + x.T @ x)
