"""What ``LastLayerLaplace`` and the baselines accept, and how a campaign changes each argument."""

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import lapal_ext
from lapal_ext import LastLayerLaplace, baselines
from lapal_ext.likelihood import CURVATURES
from lapal_ext.ops import OPS
from lapal_ext.posterior.last_layer_laplace import UPDATE_STEPS
from tests.fuzz import changes, model_changes
from tests.fuzz.changes import Choose
from tests.fuzz.head_functions import class_names
from tests.fuzz.small import Arguments, Function, Small


def _update(choose: Choose, p: Small) -> Arguments:
    return {
        "posterior": model_changes.model(p.posterior),
        "features": changes.features(p.x),
        "targets": changes.labels(p.y, p.n_classes),
        "step": changes.choice(choose(st.sampled_from(UPDATE_STEPS))),
        "gamma": changes.number(choose(st.sampled_from([1.0, 0.5, 0.0])), low=1e-6, high=1e6),
    }


def _predict(_: Choose, p: Small) -> Arguments:
    return {"posterior": model_changes.model(p.posterior), "features": changes.features(p.x)}


def _needs_no_fit(_: Choose, p: Small) -> Arguments:
    return {"posterior": model_changes.model(p.posterior, fitted=False), "features": changes.features(p.x)}


def _predict_proba(choose: Choose, p: Small) -> Arguments:
    link = choose(st.sampled_from(["plugin", "mean_field"]))
    return {
        "posterior": model_changes.model(p.posterior, fitted=link == "mean_field"),
        "features": changes.features(p.x),
        "link": changes.choice(link),
    }


def _sample_proba(choose: Choose, p: Small) -> Arguments:
    return _predict(choose, p) | {
        "link": changes.choice("mc"),
        "n_samples": changes.integer(3, 1, optional=True),
        "generator": changes.generator(7),
    }


def _constructor(choose: Choose, p: Small) -> Arguments:
    weight = p.posterior.mean[:, : p.posterior.num_features].clone()
    return {
        "weight": model_changes.weight(weight),
        "prior_precision": changes.number(choose(st.sampled_from([0.1, 10.0])), above_zero=True),
        "curvature": changes.choice(choose(st.sampled_from(CURVATURES))),
        "bias": model_changes.bias(weight[:, 0].clone()),
        "class_names": class_names(choose, p.n_classes),
    }


def _from_linear(choose: Choose, p: Small) -> Arguments:
    return {
        "head": model_changes.head(p.posterior.to_linear()),
        "features": changes.features(p.x),
        "prior_precision": changes.number(1.0, above_zero=True),
        "curvature": changes.choice(choose(st.sampled_from(CURVATURES))),
        "standardize": changes.standardize(choose(st.sampled_from([True, False, "columns"]))),
        "class_names": class_names(choose, p.n_classes),
    }


def _labelled(choose: Choose, p: Small) -> Arguments:
    names = class_names(choose, p.n_classes)
    return {
        "features": changes.any_features(p.x),
        "targets": changes.labels(p.y, p.n_classes),
        "num_classes": changes.integer(p.n_classes, 2, optional=names.good is not None),  # names say how many
        "class_names": names,
        "fit_bias": changes.flag(choose(st.booleans())),
        "standardize": changes.standardize(choose(st.sampled_from([True, False, "columns"]))),
    }


def _fit_map(choose: Choose, p: Small) -> Arguments:
    return _labelled(choose, p) | {
        "prior_precision": changes.number(choose(st.sampled_from([0.1, 10.0])), above_zero=True, low=1e-3, high=1e6),
        "curvature": changes.choice(choose(st.sampled_from(CURVATURES))),
    }


def _untrained(choose: Choose, p: Small) -> Arguments:
    arguments = _fit_map(choose, p)
    del arguments["targets"]
    return arguments


def _optimize(choose: Choose, p: Small) -> Arguments:
    if len(p.x) < 2:
        p = p._replace(x=torch.cat([p.x, p.x + 1]), y=torch.cat([p.y, p.y]))
    return _labelled(choose, p) | {
        "prior_precisions": model_changes.prior_precisions(torch.tensor([0.1, 10.0])),
        "n_folds": changes.integer(2, 2, len(p.x), optional=True),
        "generator": changes.generator(3),
    }


def _evidence(choose: Choose, p: Small) -> Arguments:
    return _needs_no_fit(choose, p) | {
        "targets": changes.labels(p.y, p.n_classes),
        "prior_precisions": model_changes.prior_precisions(torch.tensor([0.1, 10.0]), any_shape=True),
    }


def _first_order(_: Choose, p: Small) -> Arguments:
    return {
        "posterior": model_changes.model(p.posterior, foreign=True),
        "features": changes.features(p.x),
        "targets": changes.labels(p.y, p.n_classes),
        "gamma": changes.number(1e-3),
    }


def _monte_carlo(choose: Choose, p: Small) -> Arguments:
    return _first_order(choose, p) | {
        "gamma": changes.number(1.0),
        "eval_features": changes.features(p.points),
        "n_samples": changes.integer(4, 1),
        "generator": changes.generator(5),
    }


def _fitted(_: Choose, p: Small) -> Arguments:
    return {"posterior": model_changes.model(p.posterior)}


def _any(_: Choose, p: Small) -> Arguments:
    return {"posterior": model_changes.model(p.posterior, fitted=False)}


def _state(_: Choose, p: Small) -> Arguments:
    return {
        "posterior": model_changes.model(p.posterior, fitted=False),
        "state_dict": model_changes.state(p.posterior),
    }


def _backend(choose: Choose, _: Small) -> Arguments:
    return {"op": changes.choice(choose(st.sampled_from(sorted(OPS)))), "device": model_changes.device("cpu")}


def _saved_and_loaded(posterior: LastLayerLaplace) -> LastLayerLaplace:
    with tempfile.TemporaryDirectory() as folder:
        posterior.save(Path(folder) / "p")
        return LastLayerLaplace.load(Path(folder) / "p")


def _through_torch(posterior: LastLayerLaplace) -> list[Tensor]:
    buffer = io.BytesIO()
    torch.save(posterior.state_dict(), buffer)
    buffer.seek(0)
    state: dict[str, Any] = torch.load(buffer, weights_only=True)
    return [value for value in state.values() if isinstance(value, Tensor)]


def _method(name: str) -> Callable[..., object]:
    return lambda posterior, **rest: getattr(posterior, name)(**rest)


def _load(posterior: LastLayerLaplace, state_dict: object) -> LastLayerLaplace:
    posterior.load_state_dict(state_dict)
    return posterior


def _refresh(posterior: LastLayerLaplace) -> Tensor:
    return posterior.refresh().covariance


def _drift(posterior: LastLayerLaplace) -> Tensor:
    return torch.tensor(posterior.drift(), dtype=posterior.mean.dtype, device=posterior.mean.device)


FUNCTIONS = {
    "LastLayerLaplace": Function(LastLayerLaplace, _constructor),
    "from_linear": Function(LastLayerLaplace.from_linear, _from_linear),
    "fit_map": Function(LastLayerLaplace.fit_map, _fit_map),
    "untrained": Function(LastLayerLaplace.untrained, _untrained),
    "optimize_prior_precision": Function(LastLayerLaplace.optimize_prior_precision, _optimize),
    "log_marginal_likelihood": Function(_method("log_marginal_likelihood"), _evidence),
    "fit": Function(_method("fit"), _needs_no_fit, moves="posterior"),
    "update": Function(_method("update"), _update, moves="posterior"),
    "condition_on": Function(_method("condition_on"), _update),
    "predict_logits": Function(_method("predict_logits"), _needs_no_fit),
    "predict_latent": Function(_method("predict_latent"), _predict),
    "predict_proba": Function(_method("predict_proba"), _predict_proba),
    "predict_proba (mc)": Function(_method("predict_proba"), _sample_proba, draws=True),
    "refresh": Function(_refresh, _fitted, moves="posterior"),
    "drift": Function(_drift, _fitted),
    "to_linear": Function(_method("to_linear"), _any),
    "clone": Function(_method("clone"), _any, copies=True),
    "save and load": Function(_saved_and_loaded, _any),
    "state_dict": Function(_through_torch, _any, copies=True),
    "load_state_dict": Function(_load, _state, moves="posterior"),
    "first_order": Function(baselines.first_order, _first_order),
    "monte_carlo": Function(baselines.monte_carlo, _monte_carlo, draws=True),
    "backend": Function(lapal_ext.backend, _backend),
}
