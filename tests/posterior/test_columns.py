"""``standardize="columns"``: columns in different units count alike; and the warning that says when to pass it."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, SequentialSelector, expected_error_reduction, look_ahead, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.interop.sklearn import LaplaceClassifier
from lapal_ext.posterior.standardization import fit_standardization, uneven_columns
from tests.draws import Draw

N, D, C = 60, 12, 4
SAYS = "of all variance, so that the others hardly count: pass standardize='columns'"


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)


def units(draw: Draw) -> tuple[Tensor, Tensor]:
    """A scale and an origin for each of D columns, over six powers of ten."""
    return 10.0 ** (6 * draw.uniform(D) - 3), draw.normal(D)


# What it computes


@pytest.mark.parametrize("bias", [True, False])
def test_each_column_is_centred_and_scaled(draw: Draw, dtype: torch.dtype, bias: bool) -> None:
    scale, origin = units(draw)
    x = ((draw.normal(N, D) + origin) * scale).to(dtype)
    standardization = fit_standardization(x, has_bias=bias, standardize="columns")
    rows = standardization.standardized(x)[:, :D].double()
    assert standardization.scale.shape == (D,)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(rows.square().mean(0), torch.ones(D).double(), rtol=tolerance, atol=tolerance)
    if bias:
        torch.testing.assert_close(rows.mean(0), torch.zeros(D).double(), rtol=0, atol=tolerance)
    else:
        assert not bool(standardization.centre.any())


@pytest.mark.parametrize("bias", [True, False])
def test_units_do_not_change_predictions(draw: Draw, bias: bool) -> None:
    scale, origin = units(draw)
    x, y, points, pool = draw.normal(N, D), draw.integers(C, N), draw.normal(9, D), draw.normal(20, D)

    def predicted(change: Callable[[Tensor], Tensor]) -> Tensor:
        model = LastLayerLaplace.fit_map(change(x), y, C, fit_bias=bias, standardize="columns")
        model.update(change(pool), draw.integers(C, 20) * 0 + 1)
        return model.predict_proba(change(points))

    changed = predicted(lambda rows: (rows + origin * bias) * scale)
    torch.testing.assert_close(changed, predicted(lambda rows: rows), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("factor", [100.0, 1000.0])
@pytest.mark.parametrize("columns", [[10], [10, 20, 30], list(range(8))])
def test_columns_in_other_units_cost_no_accuracy(columns: list[int], factor: float) -> None:
    x, y = digits()
    x = torch.cat([x, 16 * Draw(0).uniform(len(x), 8).float()], 1)  # columns that say nothing
    uneven = x.clone()
    uneven[:, [64 + column % 8 for column in columns]] *= factor

    def accuracy(features: Tensor, standardize: bool | str) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = LastLayerLaplace.fit_map(features[:300], y[:300], 10, standardize=standardize)
        return float((model.predict_logits(features[300:]).argmax(1) == y[300:]).float().mean())

    assert accuracy(uneven, "columns") == accuracy(x, "columns") > 0.8
    assert accuracy(uneven, True) < accuracy(uneven, "columns") - 0.1


@pytest.mark.parametrize("bias", [True, False])
def test_a_column_that_is_constant_has_the_common_scale(draw: Draw, bias: bool) -> None:
    x = draw.normal(N, D)
    x[:, 3] = 0.0
    common = fit_standardization(x, has_bias=bias)
    each = fit_standardization(x, has_bias=bias, standardize="columns")
    torch.testing.assert_close(each.scale[3], common.scale)
    constant = fit_standardization(torch.full((5, D), 0.0), has_bias=bias, standardize="columns")
    assert torch.equal(constant.scale, torch.ones(D))


def test_rounding_of_a_constant_is_no_variance(draw: Draw) -> None:
    """Time stamps in float32, which resolves two minutes there."""
    x = draw.normal(N, D).float()
    x[:, 0] = 1.7e9 + 100 * x[:, 0]
    x[:, 1] = 0.1
    each, common = fit_standardization(x, has_bias=True, standardize="columns"), fit_standardization(x, has_bias=True)
    assert torch.equal(each.scale[:2], common.scale.expand(2))


EQUAL = torch.tensor([0.1, 0.7, -0.3], dtype=torch.float64)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("standardized", [True, "columns"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 100, 20000])
def test_rows_that_are_equal_have_the_scale_one(kind: torch.dtype, standardized: bool | str, count: int) -> None:
    """The mean of equal numbers is rounded, so that they seemed to deviate from it by 1e-17."""
    x, labels = EQUAL.to(kind).repeat(count, 1), torch.arange(count) % 2
    weights = 1.0 + torch.arange(count) % 3
    for model in (
        LastLayerLaplace.untrained(x, 2, standardize=standardized),
        LastLayerLaplace.fit_map(x, labels, 2, standardize=standardized),
        LastLayerLaplace.fit_map(x, labels, 2, standardize=standardized, weights=weights),
    ):
        assert bool((model.scale == 1.0).all())
        assert torch.equal(model.centre, x[0].to(model.centre.dtype))
    copies, two = x[:1].repeat(5, 1), x[:1].repeat(2, 1)
    by_copies = LastLayerLaplace.fit_map(copies, torch.arange(5) % 2, 2, standardize=standardized)
    by_weights = LastLayerLaplace.fit_map(
        two, torch.tensor([0, 1]), 2, standardize=standardized, weights=torch.tensor([3.0, 2.0])
    )
    near = two.to(by_copies.mean.dtype) + 1e-3
    expected = by_weights.predict_proba(near)
    torch.testing.assert_close(by_copies.predict_proba(near), expected, rtol=1e-3, atol=1e-4)
    assert 0.4 < float(expected[0, 0]) < 0.7


@pytest.mark.parametrize("standardized", [True, "columns"])
def test_rows_with_weights_decide_what_is_constant(draw: Draw, standardized: bool | str) -> None:
    x = torch.cat([draw.normal(4, 3), EQUAL.repeat(5, 1)])
    weights = torch.tensor([0.0] * 4 + [1.0, 2.0, 3.0, 1.0, 1.0])
    model = LastLayerLaplace.fit_map(x, torch.arange(9) % 2, 2, standardize=standardized, weights=weights)
    assert bool((model.scale == 1.0).all())
    assert torch.equal(model.centre, EQUAL)


@pytest.mark.parametrize("standardized", [True, "columns"])
def test_equal_rows_that_were_computed_differently_have_the_scale_one(standardized: bool | str) -> None:
    """They differ by one rounding, as rows of one input in two batches do."""
    x = EQUAL.repeat(10, 1)
    x[::2] = torch.nextafter(x[::2], torch.ones(()).double())
    assert bool((LastLayerLaplace.untrained(x, 2, standardize=standardized).scale == 1.0).all())
    assert uneven_columns(x) == ""


@pytest.mark.parametrize("standardized", [True, "columns"])
@pytest.mark.parametrize(("deviation", "constant"), [(0.1, True), (10.0, False)])
def test_far_from_zero_only_what_float32_resolves_is_scaled(
    draw: Draw, standardized: bool | str, deviation: float, constant: bool
) -> None:
    """Near a million the steps of float32 are 1/16."""
    x, labels = (1e6 + deviation * draw.normal(N, D)).float(), draw.integers(2, N)
    model = LastLayerLaplace.fit_map(x, labels, 2, standardize=standardized)
    if constant:
        assert bool((model.scale == 1.0).all())
    else:
        inner = model.standardization.standardized(x)[:, :D]
        assert float(inner.square().mean()) == pytest.approx(1.0, rel=0.01)


def test_a_constant_column_does_not_change_the_scale_of_a_small_one(draw: Draw) -> None:
    x = torch.cat([1e-20 * draw.normal(5, 1), EQUAL.repeat(5, 1)], 1)
    for standardized in (True, "columns"):
        model = LastLayerLaplace.untrained(x, 2, standardize=standardized)
        inner = model.standardization.standardized(x)[:, :-1]
        mean_square = inner.square().mean() if standardized is True else inner[:, 0].square().mean()
        assert float(mean_square) == pytest.approx(1.0)


def test_features_that_overflow_are_refused(draw: Draw) -> None:
    x = draw.normal(N, D)
    x[0, 0] = 1e300
    with pytest.raises(ValueError, match="features must give results that are finite"):
        LastLayerLaplace.fit_map(x, draw.integers(C, N), C, standardize="columns")


# Everything else that a posterior does


def pair(draw: Draw, bias: bool) -> tuple[LastLayerLaplace, LastLayerLaplace, Callable[[Tensor], Tensor], Tensor]:
    """Two posteriors: one with units inside, and one of features that are standardised outside."""
    scale, origin = units(draw)
    x, y = (draw.normal(N, D) + origin) * scale, draw.integers(C, N)
    inside = LastLayerLaplace.fit_map(x, y, C, fit_bias=bias, standardize="columns")
    parts = inside.standardization

    def outside(rows: Tensor) -> Tensor:
        return (rows - parts.centre) * parts.scale

    plain = LastLayerLaplace.fit_map(outside(x), y, C, fit_bias=bias, standardize=False)
    return inside, plain, outside, (draw.normal(40, D) + origin) * scale


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_picks_are_those_of_features_scaled_outside(draw: Draw, acquisition: str, bias: bool) -> None:
    inside, plain, outside, pool = pair(draw, bias)
    seeds = [torch.Generator().manual_seed(1) for _ in range(2)]
    result = select_batch(inside, pool, 6, acquisition, generator=seeds[0], labelled=pool[:3])
    wanted = select_batch(plain, outside(pool), 6, acquisition, generator=seeds[1], labelled=outside(pool)[:3])
    assert result.indices.tolist() == wanted.indices.tolist()
    torch.testing.assert_close(result.posterior.covariance, wanted.posterior.covariance, rtol=1e-6, atol=1e-9)


def test_look_ahead_and_the_selector_are_those_of_features_scaled_outside(draw: Draw) -> None:
    inside, plain, outside, pool = pair(draw, bias=True)
    rows, labels = torch.arange(40).view(10, 4), draw.integers(C, 40)
    arguments = [(inside, pool, pool), (plain, outside(pool), outside(pool))]
    ahead = [look_ahead(model, x, rows, labels, points) for model, x, points in arguments]
    torch.testing.assert_close(*ahead, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(*[expected_error_reduction(*some) for some in arguments], rtol=1e-6, atol=1e-9)
    selectors = [SequentialSelector(model, x) for model, x, _ in arguments]
    for _ in range(5):
        first, second = (int(selector.ask()) for selector in selectors)
        assert first == second
        for selector in selectors:
            selector.tell(first, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_to_linear_folds_each_column_back(draw: Draw, bias: bool) -> None:
    inside, _, _, pool = pair(draw, bias)
    inside.update(pool[:5], draw.integers(C, 5))
    out = nn.Linear(D, C, bias=bias, dtype=torch.float64)
    for layer in (inside.to_linear(), inside.to_linear(out=out)):
        torch.testing.assert_close(layer(pool).detach(), inside.predict_logits(pool), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(layer(pool).detach(), inside.predict_latent(pool).logits, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(inside(pool), inside.predict_logits(pool), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_keeps_the_predictions(draw: Draw, bias: bool) -> None:
    scale, origin = units(draw)
    head = nn.Linear(D, C, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(draw.normal(C, D) / scale)
    x = (draw.normal(N, D) + origin) * scale
    model = LastLayerLaplace.from_linear(head, x, standardize="columns")
    assert model.scale.shape == (D,)
    torch.testing.assert_close(model.predict_logits(x), head(x).detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.to_linear().weight, head.weight, rtol=1e-9, atol=1e-12)


def test_untrained_and_fit_map_standardise_alike(draw: Draw) -> None:
    x = draw.normal(N, D)
    made = [
        LastLayerLaplace.untrained(x, C, standardize="columns"),
        LastLayerLaplace.fit_map(x, draw.integers(C, N), C, standardize="columns"),
    ]
    assert torch.equal(made[0].scale, made[1].scale)
    assert torch.equal(made[0].centre, made[1].centre)


def test_optimize_prior_precision_scales_each_fold(draw: Draw) -> None:
    """The result does not depend on the units; with one scale it does."""
    scale, origin = units(draw)
    x, y = draw.normal(N, D), draw.integers(C, N)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    grid = torch.tensor([0.1, 1.0, 10.0])

    def best(features: Tensor) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return LastLayerLaplace.optimize_prior_precision(
                features, y, C, grid, standardize="columns", generator=torch.Generator().manual_seed(0)
            )

    assert best((x + origin) * scale) == best(x)


COPIES: dict[str, Callable[[LastLayerLaplace, Path], LastLayerLaplace]] = {
    "clone": lambda model, _: model.clone(),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "file": lambda model, path: (model.save(path), LastLayerLaplace.load(path))[1],
    "state of one with one scale": lambda model, _: _loaded(model, standardize=True),
    "state of one with a scale per column": lambda model, _: _loaded(model, standardize="columns"),
    "there and back": lambda model, _: model.clone().float().double(),
    "a new class": lambda model, _: model.clone().add_class(),
}


def _loaded(model: LastLayerLaplace, standardize: bool | str) -> LastLayerLaplace:
    other = LastLayerLaplace.untrained(Draw(1).normal(N, D), C, standardize=standardize)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("kind", [True, "columns"])
@pytest.mark.parametrize("name", COPIES)
def test_copies_keep_the_scale(draw: Draw, tmp_path: Path, name: str, kind: bool | str) -> None:
    model = LastLayerLaplace.fit_map(draw.normal(N, D), draw.integers(C, N), C, standardize=kind)
    copied = COPIES[name](model, tmp_path / "model.safetensors")
    tolerance = 1e-6 if name == "there and back" else 0.0
    torch.testing.assert_close(copied.scale, model.scale, rtol=tolerance, atol=0.0)
    x = draw.normal(5, D)
    torch.testing.assert_close(copied.predict_logits(x)[:, :C], model.predict_logits(x), rtol=tolerance, atol=tolerance)
    copied.scale.mul_(2.0)
    assert not torch.equal(copied.scale, model.scale)


def test_a_state_of_another_width_is_refused(draw: Draw) -> None:
    model = LastLayerLaplace.fit_map(draw.normal(N, D), draw.integers(C, N), C, standardize="columns")
    state = model.state_dict()
    for wrong in (state["scale"][1:], state["scale"][None], state["scale"][:1]):
        with pytest.raises(ValueError, match=r"scale.* must have shape"):
            model.load_state_dict(state | {"scale": wrong})


def test_the_classifier_takes_it(draw: Draw) -> None:
    scale, origin = units(draw)
    x, y = draw.normal(N, D), draw.integers(C, N).numpy()
    fitted = [
        LaplaceClassifier(standardize="columns").fit(rows.numpy(), y).predict_proba(rows.numpy())
        for rows in (x, (x + origin) * scale)
    ]
    np.testing.assert_allclose(*fitted, rtol=1e-7)
    with pytest.raises(ValueError, match="standardize must be True, False or 'columns', got 'column'"):
        LaplaceClassifier(standardize="column").fit(x.numpy(), y)


# The warning about columns


def fits(x: Tensor, y: Tensor, **options: object) -> None:
    """Every function that standardises, without an error or a warning."""
    LastLayerLaplace.untrained(x, int(y.max()) + 1, **options)
    LastLayerLaplace.fit_map(x, y, int(y.max()) + 1, **options)
    head = nn.Linear(x.shape[1], 3, dtype=x.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "features have mean square")
        LastLayerLaplace.from_linear(head, x, **options)


def one_column(draw: Draw, factor: float, columns: int = 1, width: int = D, rows: int = N) -> Tensor:
    x = draw.normal(rows, width)
    x[:, width // 2 : width // 2 + columns] *= factor
    return x


@pytest.mark.parametrize("kind", [True, False])
@pytest.mark.parametrize(
    ("width", "columns", "factor"), [(D, 1, 100.0), (2, 1, 100.0), (64, 1, 15.0), (384, 1, 100.0), (384, 5, 30.0)]
)
def test_uneven_columns_are_named(draw: Draw, width: int, columns: int, factor: float, kind: bool) -> None:
    x, y = one_column(draw, factor, columns, width, rows=100), draw.integers(C, 100)
    head = nn.Linear(width, C, dtype=torch.float64)
    options = {"standardize": kind}
    calls: list[Callable[[], object]] = [
        lambda: LastLayerLaplace.fit_map(x, y, C, **options),
        lambda: LastLayerLaplace.untrained(x, C, **options),
        lambda: LastLayerLaplace.from_linear(head, x, **options),
        lambda: LaplaceClassifier(**options).fit(x.numpy(), y.numpy()),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match=SAYS) as caught:
            call()
        assert len(caught) == 1
        assert caught[0].filename == __file__
        if columns == 1:
            assert str(caught[0].message).startswith(f"column {width // 2} of features has ")
    with pytest.warns(UserWarning, match=SAYS):
        LastLayerLaplace.optimize_prior_precision(x, y, C, torch.tensor([1.0]), n_folds=2, **options)
    fits(x, y, standardize="columns")


def test_tables_in_mixed_units_give_the_warning() -> None:
    for load in (load_wine, load_breast_cancer):
        assert SAYS in uneven_columns(torch.tensor(load().data))


ORDINARY: dict[str, Callable[[Draw], Tensor]] = {
    "digits": lambda _: digits()[0],
    "digits, ten rows": lambda _: digits()[0][:10],
    "principal components": lambda _: torch.tensor(PCA(30).fit_transform(digits()[0].numpy())),
    "principal components that fall fast": lambda draw: draw.normal(N, 300) / torch.arange(1, 301) ** 1.5,
    "iris": lambda _: torch.tensor(load_iris().data),
    "one column": lambda draw: draw.normal(N, 1),
    "two columns": lambda draw: draw.normal(N, 2) * torch.tensor([5.0, 1.0]),
    "one row": lambda draw: draw.normal(1, D),
    "two rows": lambda draw: draw.normal(2, 2),
    "constant": lambda _: torch.ones(N, D),
    "constant, no binary fractions": lambda _: torch.full((9, 3), 0.1) * torch.tensor([1.0, 7.0, -3.0]).double(),
    "constant to one rounding but for one": lambda draw: torch.cat(
        [0.1 + 1e-17 * torch.arange(N)[:, None] * torch.ones(D).double(), draw.normal(N, 1)], 1
    ),
    "constant but for one": lambda draw: torch.cat([torch.ones(N, D).double(), draw.normal(N, 1)], 1),
    "after a rectifier": lambda draw: draw.normal(N, D).relu(),
    "far from zero": lambda draw: draw.normal(N, D) + 1000 * draw.normal(D),
    "heavy tails": lambda draw: draw.normal(N, 384) / draw.uniform(N, 1).clamp(min=0.1),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_features_give_no_warning(draw: Draw, name: str) -> None:
    assert uneven_columns(ORDINARY[name](draw)) == ""


# The warning about the edge of the grid


@pytest.mark.parametrize(("grid", "beyond"), [([100.0, 1000.0], "smaller"), ([1e-3, 1.0], "larger")])
def test_the_edge_of_the_grid_is_named(draw: Draw, grid: list[float], beyond: str) -> None:
    x, y = draw.normal(200, D), draw.integers(C, 200)
    if beyond == "smaller":
        y = (5 * x[:, :C]).argmax(1)
    with pytest.warns(UserWarning, match=rf"at the edge of those that it tried, .*: pass .* {beyond} ones") as caught:
        LastLayerLaplace.optimize_prior_precision(x, y, C, torch.tensor(grid))
    assert caught[0].filename == __file__


def test_a_value_within_the_grid_and_a_grid_of_one_value_give_no_warning() -> None:
    x, y = digits()
    y = torch.where(Draw(0).uniform(len(y)) < 0.3, Draw(1).integers(10, len(y)), y)
    LastLayerLaplace.optimize_prior_precision(x[:100], y[:100], 10, torch.tensor([1e-4, 30.0, 1e7]))
    LastLayerLaplace.optimize_prior_precision(x[:100], y[:100], 10, torch.tensor([1.0]))
    LastLayerLaplace.optimize_prior_precision(x[:100], y[:100], 10, torch.tensor([1.0, 1.0]))
