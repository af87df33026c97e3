"""Wrong arguments of ``LastLayerLaplace``: a typed error that names the argument, and an unchanged posterior."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lapal_ext import LastLayerLaplace, baselines
from tests.fuzz import values
from tests.fuzz.calls import Call, bits, cases, check_error, fresh
from tests.fuzz.values import Bad, put
from tests.problems import make_problem

problem = make_problem()
X, Y = problem.pool[:8], problem.labels[:8]
WEIGHT, BIAS = problem.posterior.mean[:, :-1].clone(), problem.posterior.mean[:, -1].clone()
HEAD = problem.posterior.to_linear()
MODEL = problem.posterior.clone().update(X[:3], Y[:3])  # its precision does not contain these rows yet

NAMES = ("a", "b", "c", "d")
NAMED = MODEL.clone()
NAMED.class_names = NAMES

MATRIX = {
    **values.not_dense(WEIGHT),
    "a vector": Bad(WEIGHT[0], ValueError, r"must have shape \(C, D\), got \(12,\)"),
    "one class": Bad(WEIGHT[:1], ValueError, r"must have at least 2 classes and 1 feature, got \(1, 12\)"),
    "no features": Bad(WEIGHT[:, :0], ValueError, "must have at least 2 classes and 1 feature"),
    "half": Bad(WEIGHT.half(), TypeError, r"must be float32 or float64, got torch\.float16"),
    "int": Bad(WEIGHT.long(), TypeError, "must be float32 or float64"),
    "complex": Bad(WEIGHT.to(torch.complex64), TypeError, "must be float32 or float64"),
    "meta": Bad(WEIGHT.to("meta"), ValueError, "must (hold values|be on cpu)"),
    "a NaN": Bad(put(WEIGHT, math.nan), ValueError, "must be finite"),
}
VECTOR = {
    "list": Bad(BIAS.tolist(), TypeError, r"must be a torch\.Tensor"),
    "too short": Bad(BIAS[:-1], ValueError, r"must have shape \(4,\) to match weight \(4, 12\), got \(3,\)"),
    "a column": Bad(BIAS[:, None], ValueError, "must have shape"),
    "float32": Bad(BIAS.float(), TypeError, r"must be torch\.float64 like weight"),
    "an infinity": Bad(put(BIAS, math.inf), ValueError, "must be finite"),
}
PRIOR = {
    **values.numbers(above_zero=True),
    "without an inverse": Bad(1e-320, ValueError, r"must lie in \[2\.2e-308, 4\.5e\+307\]"),
}
PRIORS = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
GRIDS = {
    **{name: bad for name, bad in values.not_dense(PRIORS).items() if name != "None"},
    "integers": Bad(PRIORS.long(), TypeError, r"must be floating point numbers, got torch\.int64"),
    "complex": Bad(PRIORS.to(torch.complex64), TypeError, "must be floating point numbers"),
    "meta": Bad(PRIORS.to("meta"), ValueError, "must hold values"),
    "a NaN": Bad(put(PRIORS, math.nan), ValueError, "must be finite"),
    "an infinity": Bad(put(PRIORS, math.inf), ValueError, "must be finite"),
    "zero": Bad(put(PRIORS, 0.0), ValueError, r"must lie in \[2\.2e-308, 4\.5e\+307\]"),
    "negative": Bad(put(PRIORS, -1.0), ValueError, r"must lie in \[2\.2e-308, 4\.5e\+307\]"),
}
UPDATE = {
    "features": {**values.features_of(X), **values.overflowing(X)},
    "targets": values.labels(Y, 4),
    "step": values.choices_not_none(),
    "gamma": values.numbers() | {"ndarray": Bad(np.array([1.0, 2.0]), ValueError, "must have shape")},
}
PREDICT = {"features": {**values.features_of(X), **values.overflowing(X)}}
LABELLED = {"posterior": MODEL, "features": X, "targets": Y, "step": "line_search", "gamma": 1.0}

CALLS = {
    "constructor": Call(
        LastLayerLaplace,
        {"weight": WEIGHT, "prior_precision": 1.0, "curvature": "categorical", "bias": BIAS, "class_names": NAMES},
        {"weight": MATRIX, "prior_precision": PRIOR, "curvature": values.choices_not_none(), "bias": VECTOR}
        | {"class_names": values.class_names(4)},
    ),
    "from_linear": Call(
        LastLayerLaplace.from_linear,
        {"head": HEAD, "features": X, "prior_precision": 1.0, "curvature": "categorical", "standardize": True}
        | {"class_names": NAMES},
        {
            "head": values.heads(torch.float64),
            "features": {**values.features_of(X), **values.no_rows(X)},
            "prior_precision": PRIOR,
            "curvature": values.choices_not_none(),
            "standardize": values.standardize(),
            "class_names": values.class_names(4),
        },
    ),
    "untrained": Call(
        LastLayerLaplace.untrained,
        {"features": X, "num_classes": 4, "prior_precision": 1.0, "curvature": "categorical", "fit_bias": True}
        | {"standardize": True, "class_names": NAMES},
        {
            "features": {name: bad for name, bad in values.features(X).items() if name not in ("other", "half")}
            | values.no_rows(X)
            | {"huge": Bad(1e200 * X, ValueError, "must give results that are finite")},
            "num_classes": {name: bad for name, bad in values.integers(at_least=2).items() if name != "beyond int64"},
            "prior_precision": PRIOR,
            "curvature": values.choices_not_none(),
            "fit_bias": values.flags(),
            "standardize": values.standardize(),
            "class_names": values.class_names(4),
        },
    ),
    "fit_map": Call(
        LastLayerLaplace.fit_map,
        {
            "features": X,
            "targets": Y,
            "num_classes": 4,
            "prior_precision": 1.0,
            "curvature": "categorical",
            "fit_bias": True,
            "standardize": True,
            "class_names": NAMES,
        },
        {
            # Before there is a model, features of any width and of both precisions are accepted.
            "features": {name: bad for name, bad in values.features(X).items() if name not in ("other", "half")}
            | values.no_rows(X)
            | {"huge": Bad(1e200 * X, ValueError, "must give results that are finite")},
            "targets": values.labels(Y, 4),
            "num_classes": {name: bad for name, bad in values.integers(at_least=2).items() if name != "beyond int64"},
            "prior_precision": PRIOR,
            "curvature": values.choices_not_none(),
            "fit_bias": values.flags(),
            "standardize": values.standardize(),
            "class_names": values.class_names(4),
        },
    ),
    "optimize_prior_precision": Call(
        LastLayerLaplace.optimize_prior_precision,
        {
            "features": X,
            "targets": Y,
            "num_classes": 4,
            "prior_precisions": PRIORS,
            "n_folds": 2,
            "fit_bias": True,
            "standardize": True,
            "generator": torch.Generator(),
        },
        {
            "features": {name: bad for name, bad in values.features(X).items() if name not in ("other", "half")}
            | values.no_rows(X)
            | {"one row": Bad(X[:1], ValueError, r"must have at least two rows|targets")}
            | {"huge": Bad(1e200 * X, ValueError, "must give results that are finite")},
            "targets": values.labels(Y, 4),
            "num_classes": {name: bad for name, bad in values.integers(at_least=2).items() if name != "beyond int64"},
            "prior_precisions": GRIDS
            | {
                "a scalar": Bad(PRIORS[0], ValueError, r"must have shape \(P,\) with P >= 1, got \(\)"),
                "a matrix": Bad(PRIORS[None], ValueError, r"must have shape \(P,\) with P >= 1, got \(1, 3\)"),
                "none": Bad(PRIORS[:0], ValueError, r"must have shape \(P,\) with P >= 1, got \(0,\)"),
            },
            "n_folds": values.integers(at_least=2, at_most=8),
            "fit_bias": values.flags(),
            "standardize": values.standardize(),
            "generator": values.generators(),
        },
    ),
    "log_marginal_likelihood": Call(
        LastLayerLaplace.log_marginal_likelihood,
        {"self": MODEL, "features": X, "targets": Y, "prior_precisions": PRIORS},
        {
            "features": values.features_of(X),
            "targets": values.labels(Y, 4),
            "prior_precisions": GRIDS,
        },
    ),
    "first_order": Call(
        baselines.first_order,
        {"posterior": MODEL, "features": X, "targets": Y, "gamma": 1e-3},
        {
            "posterior": values.posteriors(MODEL),
            "features": values.features_of(X),
            "targets": values.labels(Y, 4),
            "gamma": values.numbers(),
        },
    ),
    "monte_carlo": Call(
        baselines.monte_carlo,
        {"posterior": MODEL, "features": X, "targets": Y, "eval_features": X[:4], "gamma": 1.0}
        | {"n_samples": 3, "generator": torch.Generator()},
        {
            "posterior": values.posteriors(MODEL),
            "features": values.features_of(X),
            "targets": values.labels(Y, 4),
            "eval_features": values.features_of(X[:4]),
            "gamma": values.numbers(),
            "n_samples": values.integers(at_least=1),
            "generator": values.generators(),
        },
    ),
    "to_linear": Call(
        LastLayerLaplace.to_linear,
        {"self": MODEL, "out": problem.posterior.to_linear()},
        {"out": values.layers_to_write_to(HEAD)},
    ),
    "add_class": Call(
        LastLayerLaplace.add_class,
        {"self": MODEL, "name": None},
        {"name": {"without the others": Bad("e", ValueError, "must be None where the classes have no names, got 'e'")}},
    ),
    "add_class with names": Call(
        LastLayerLaplace.add_class,
        {"self": NAMED, "name": "e"},
        {
            "name": {
                "none": Bad(None, TypeError, "must be a str, as the other classes have one, got NoneType"),
                "a number": Bad(4, TypeError, "must be a str, as the other classes have one, got int"),
                "an old one": Bad("a", ValueError, "must be one that no other class has, got 'a'"),
                "nothing": Bad("", ValueError, "must be one that no other class has, got ''"),
            }
        },
    ),
    "fit": Call(LastLayerLaplace.fit, {"self": MODEL, "features": X}, {"features": values.features_of(X)}),
    "update": Call(lambda posterior, **rest: posterior.update(**rest), LABELLED, UPDATE),
    "condition_on": Call(lambda posterior, **rest: posterior.condition_on(**rest), LABELLED, UPDATE),
    "predict_latent": Call(LastLayerLaplace.predict_latent, {"self": MODEL, "features": X}, PREDICT),
    "predict_logits": Call(
        LastLayerLaplace.predict_logits, {"self": MODEL, "features": X}, {"features": values.features_of(X)}
    ),
    "predict_proba": Call(
        LastLayerLaplace.predict_proba,
        {"self": MODEL, "features": X, "link": "mc", "n_samples": 3, "generator": torch.Generator()},
        {
            **PREDICT,
            "link": values.choices_not_none(),
            "n_samples": values.integers(at_least=1),
            "generator": values.generators(),
        },
    ),
}


@pytest.mark.parametrize(("call", "argument", "bad"), cases(CALLS))
def test_wrong_argument(call: Call, argument: str, bad: Bad) -> None:
    check_error(call, argument, bad)


@pytest.mark.filterwarnings("ignore:optimize_prior_precision found the best value")
@pytest.mark.parametrize("name", CALLS)
def test_the_other_arguments_are_accepted(name: str) -> None:
    CALLS[name].function(**fresh(CALLS[name]))


def test_n_samples_is_for_the_mc_link_alone() -> None:
    with pytest.raises(ValueError, match=r"^n_samples is for link='mc', got it with link='plugin'"):
        MODEL.predict_proba(X, "plugin", n_samples=3)


@pytest.mark.parametrize("n_rows", [1, 8])
@pytest.mark.parametrize("step", ["line_search", "newton"])
@pytest.mark.parametrize("factor", [1e12, 1e18, 1e19, 1e30])
def test_float32_features_too_large_for_their_squares(factor: float, step: str, n_rows: int) -> None:
    """Where |phi|^2 overflows in float32, an update may raise, but must not succeed with an infinite precision."""
    model, x = MODEL.clone().float(), (factor * X[:n_rows]).float()
    before = bits(model)
    failure = ""
    try:
        model.update(x, Y[:n_rows], step)
    except (ValueError, ArithmeticError) as error:
        failure = str(error)
    if failure:
        assert "features" in failure
        assert bits(model) == before
    else:
        assert all(bool(buffer.isfinite().all()) for buffer in (model.mean, model.covariance, model.precision))
        assert factor < 1e19


def test_the_error_of_a_step_that_overflows_names_gamma() -> None:
    model = MODEL.clone().float()
    before = bits(model)
    with pytest.raises(ValueError, match=r"^gamma must leave the steps finite in torch\.float32, got 1e\+300"):
        model.update(X.float(), Y, "newton", gamma=1e300)
    assert bits(model) == before


@pytest.mark.parametrize("name", ["mean", "covariance"])
def test_a_posterior_with_nan_raises(name: str) -> None:
    model = MODEL.clone()
    getattr(model, name)[0, 0] = math.nan
    for call in (lambda: model.predict_proba(X), lambda: model.predict_latent(X), lambda: model.update(X, Y)):
        with pytest.raises((ValueError, ArithmeticError), match="look for NaN in the posterior"):
            call()


# Arguments that must be accepted


@pytest.mark.parametrize(
    "x",
    [
        nn.Parameter(X.clone()),
        X.clone().requires_grad_(),
        X.T.contiguous().T,
        torch.cat([X, X], 1)[:, ::2][:, :12],
        X[:1].expand(8, 12),
        X[:1],
        X[:0],
    ],
    ids=["parameter", "requires grad", "transposed", "strided", "expanded", "one row", "no rows"],
)
def test_features_of_every_kind_are_accepted(x: torch.Tensor) -> None:
    plain = x.detach().clone()
    for step in ("line_search", "newton"):
        changed, expected = (MODEL.condition_on(rows, Y[: len(x)], step) for rows in (x, plain))
        torch.testing.assert_close(changed.mean, expected.mean, rtol=1e-12, atol=1e-14)
        assert not changed.mean.requires_grad
    for link in ("plugin", "mean_field"):
        torch.testing.assert_close(MODEL.predict_proba(x, link), MODEL.predict_proba(plain, link))
    torch.testing.assert_close(MODEL.clone().fit(x).covariance, MODEL.clone().fit(plain).covariance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_of_every_integer_type_are_accepted(dtype: torch.dtype) -> None:
    assert torch.equal(MODEL.condition_on(X, Y.to(dtype)).mean, MODEL.condition_on(X, Y).mean)


@pytest.mark.parametrize("gamma", values.GOOD_NUMBERS, ids=lambda value: type(value).__name__)
def test_gamma_of_every_kind_is_accepted(gamma: float) -> None:
    assert torch.equal(MODEL.condition_on(X, Y, gamma=gamma).mean, MODEL.condition_on(X, Y).mean)


@pytest.mark.parametrize("fit_bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_smallest_problem(dtype: torch.dtype, fit_bias: bool, standardize: bool) -> None:
    """Two classes, one feature, one row."""
    x, y = torch.tensor([[2.0]], dtype=dtype), torch.tensor([1])
    model = LastLayerLaplace.fit_map(x, y, 2, fit_bias=fit_bias, standardize=standardize)
    before = model.predict_proba(x)[0, 1]
    model.update(x, y)
    assert model.predict_proba(x).shape == (1, 2)
    assert float(model.predict_proba(x)[0, 1]) > float(before) - 1e-6
    assert model.refresh().drift() < 1e-6
    assert torch.allclose(model.to_linear()(x), model.predict_logits(x))


def test_a_model_made_in_inference_mode_can_be_updated() -> None:
    with torch.inference_mode():
        model = LastLayerLaplace.fit_map(problem.pool, problem.labels, 4)
    expected = LastLayerLaplace.fit_map(problem.pool, problem.labels, 4).update(X, Y)
    model.update(X, Y)
    torch.testing.assert_close(model.mean, expected.mean)
    torch.testing.assert_close(model.precision, expected.precision)
