"""Example arguments of every op, float64, with a different size for every letter, so that swapped sizes fail."""

from collections.abc import Callable

import torch

from tests.draws import Arguments, Draw

SIZES = {"N": 13, "E": 11, "D": 7, "C": 5, "b": 4, "M": 3, "S": 6, "B": 2, "H": 2, "L": 9}


def _with(make: Callable[..., Arguments], **choices: object) -> Callable[..., Arguments]:
    return lambda draw, **sizes: make(draw, **(SIZES | sizes)) | choices


def _rank_one_update(draw: Draw, B: int, D: int, **_: int) -> Arguments:
    return {"covariance": draw.covariance(B, D), "features": draw.normal(B, D), "curvature": draw.uniform(B)}


def _rank_n_update(draw: Draw, b: int, D: int, **_: int) -> Arguments:
    triangle = torch.eye(b, dtype=torch.float64) + draw.normal(b, b).tril(-1) / 4
    return {
        "matrix": draw.covariance(D),
        "rows": draw.normal(b, D),
        "weights": draw.normal(b),
        "triangle": triangle,
    }


def _inner_products(draw: Draw, N: int, E: int, D: int, **_: int) -> Arguments:
    return {"rows": draw.normal(N, D), "points": draw.normal(E, D)}


def _update_coefficients(draw: Draw, M: int, b: int, C: int, D: int, **_: int) -> Arguments:
    return {
        "gram": draw.gram(M, b, D),
        "logits": draw.normal(M, b, C),
        "targets": draw.integers(C, M, b),
        "gamma": 1.0,
        "step": "line_search",
        "curvature": "categorical",
    }


def _absorb_labels(draw: Draw, b: int, C: int, D: int, **_: int) -> Arguments:
    return {
        "mean": draw.normal(C, D) / 2,
        "covariance": draw.covariance(D),
        "features": draw.normal(b, D),
        "targets": draw.integers(C, b),
        "gamma": 1.0,
        "step": "line_search",
        "curvature": "categorical",
    }


def _lookahead_loss(draw: Draw, N: int, E: int, C: int, b: int, M: int, **_: int) -> Arguments:
    return {
        "logits": draw.normal(C, E),
        "columns": draw.normal(N, E) / 3,
        "batches": draw.integers(N, M, b),
        "coefficients": draw.normal(M, b, C),
        "triangle": torch.eye(b, dtype=torch.float64) + draw.normal(M, b, b).tril(-1) / b,
        "beta": draw.uniform(M, b) / b,
        "variance": 1 + draw.uniform(E),
        "targets": draw.integers(C, E),
        "loss_kind": "cross_entropy",
        "kappa": 0.4,
    }


def _expected_lookahead(draw: Draw, N: int, E: int, C: int, **_: int) -> Arguments:
    return {
        "logits": draw.normal(C, E),
        "columns": draw.normal(N, E),
        "step_lengths": draw.uniform(N),
        "probabilities": draw.normal(N, C).softmax(1),
        "loss_kind": "expected_cross_entropy",
    }


def _predictive_variance(draw: Draw, N: int, D: int, **_: int) -> Arguments:
    return {"features": draw.normal(N, D), "covariance": draw.covariance(D)}


def _predictive(draw: Draw, N: int, C: int, **_: int) -> Arguments:
    return {"logits": draw.normal(N, C), "variance": draw.uniform(N), "kappa": 0.4}


def _utility(draw: Draw, N: int, C: int, **_: int) -> Arguments:
    return _predictive(draw, N, C) | {"scale": 1 + draw.uniform(N), "kind": "margin"}


def _mc_predictive(draw: Draw, N: int, C: int, S: int, **_: int) -> Arguments:
    return {"logits": draw.normal(N, C), "variance": draw.uniform(N), "noise": draw.normal(S, C)}


def _selection_step_(draw: Draw, N: int, D: int, C: int, **_: int) -> Arguments:
    return {
        "pool": draw.normal(N, D),
        "u": draw.normal(D),
        "offset": draw.normal(),
        "g": draw.normal(C),
        "beta": draw.uniform() / (4 * D),
        "logits": draw.normal(N, C),
        "variance": 1 + draw.uniform(N),
        "taken": draw.uniform(N) < 0.2,
        "scale": 1 + draw.uniform(N),
        "kind": "margin",
        "kappa": 0.4,
    }


def _bait_step_(draw: Draw, N: int, D: int, **_: int) -> Arguments:
    return {
        "pool": draw.normal(N, D),
        "u": draw.normal(D),
        "u_offset": draw.normal(),
        "w": draw.normal(D),
        "w_offset": draw.normal(),
        "fisher_norm": draw.uniform(),
        "beta": draw.uniform() / (4 * D),
        "curvature": draw.uniform(N),
        "h": 3 + draw.uniform(N),
        "q": 3 + draw.uniform(N),
        "taken": draw.uniform(N) < 0.2,
    }


def _badge_step_(draw: Draw, N: int, D: int, C: int, **_: int) -> Arguments:
    pool, gradient, centre, g = draw.normal(N, D), draw.normal(N, C), draw.normal(D), draw.normal(C)
    return {
        "pool": pool,
        "u": centre,
        "offset": torch.zeros((), dtype=torch.float64),
        "gradient": gradient,
        "g": g,
        "squared_norm": gradient.square().sum(1) * pool.square().sum(1),
        "centre_norm": g.square().sum() * centre.square().sum(),
        "threshold": draw.uniform(),
        "distance": 200 * draw.uniform(N),
    }


def _nearest_distance_(draw: Draw, N: int, D: int, L: int, **_: int) -> Arguments:
    return {
        "pool": draw.normal(N, D),
        "centres": draw.normal(L, D),
        "scale": 0.5 + draw.uniform(D),
        "nearest": 2 * D * draw.uniform(N),
        "taken": draw.uniform(N) < 0.3,
    }


def _coverage_gain(draw: Draw, M: int, E: int, **_: int) -> Arguments:
    return {"kernel": draw.uniform(M, E), "weight": draw.uniform(E), "covered": draw.uniform(E) / 2}


def _kernel_coverage(draw: Draw, M: int, E: int, D: int, **_: int) -> Arguments:
    rows, references = (torch.nn.functional.normalize(draw.normal(count, D), dim=1) for count in (M, E))
    return {
        "rows": rows,
        "references": references,
        "weight": draw.uniform(E),
        "covered": draw.uniform(E) / 8,
        "inverse_squared_bandwidth": 1.3,
    }


def _softmax_gradient(draw: Draw, N: int, D: int, C: int, H: int, **_: int) -> Arguments:
    return {
        "features": draw.normal(N, D),
        "logits": draw.normal(C, N),
        "targets": draw.integers(C, N),
        "trust": draw.uniform(N),
        "directions": draw.normal(H, C, N),
    }


def _directional_derivatives(draw: Draw, N: int, C: int, **_: int) -> Arguments:
    return {
        "logits": draw.normal(C, N),
        "direction": draw.normal(C, N),
        "targets": draw.integers(C, N),
        "trust": draw.uniform(N),
        "step": 0.7,
    }


_PLUGIN = {"triangle": None, "beta": None, "variance": None}

# op -> variant -> function of (draw, **sizes). The first variant passes every optional argument.
EXAMPLES: dict[str, dict[str, Callable[..., Arguments]]] = {
    "absorb_labels": {
        "all": _with(_absorb_labels),
        "newton-gaussian": _with(_absorb_labels, step="newton", curvature="gaussian"),
    },
    "rank_one_update": {"all": _with(_rank_one_update)},
    "rank_n_update": {"all": _with(_rank_n_update), "identity": _with(_rank_n_update, triangle=None)},
    "inner_products": {"all": _with(_inner_products)},
    "update_coefficients": {
        "all": _with(_update_coefficients),
        "newton-gaussian": _with(_update_coefficients, step="newton", curvature="gaussian"),
    },
    "lookahead_loss": {
        "all": _with(_lookahead_loss),
        "plugin-brier": _with(_lookahead_loss, loss_kind="brier", **_PLUGIN),
        "plugin-expected": _with(_lookahead_loss, loss_kind="expected_cross_entropy", targets=None, **_PLUGIN),
    },
    "expected_lookahead": {
        "all": _with(_expected_lookahead),
        "zero_one": _with(_expected_lookahead, loss_kind="expected_zero_one"),
    },
    "predictive_variance": {"all": _with(_predictive_variance)},
    "predictive": {"all": _with(_predictive), "plugin": _with(_predictive, variance=None)},
    "utility": {
        "all": _with(_utility),
        "gradient_norm": _with(_utility, kind="gradient_norm"),
        "plugin-entropy": _with(_utility, kind="entropy", variance=None, scale=None),
    },
    "mc_predictive": {"all": _with(_mc_predictive)},
    "selection_step_": {
        "all": _with(_selection_step_),
        "variance": _with(_selection_step_, kind="variance", scale=None),
        "plugin-entropy": _with(_selection_step_, kind="entropy", variance=None, scale=None),
    },
    "bait_step_": {"all": _with(_bait_step_)},
    "badge_step_": {"all": _with(_badge_step_)},
    "nearest_distance_": {"all": _with(_nearest_distance_)},
    "coverage_gain": {"all": _with(_coverage_gain)},
    "kernel_coverage": {"all": _with(_kernel_coverage)},
    "softmax_gradient": {"all": _with(_softmax_gradient)},
    "directional_derivatives": {"all": _with(_directional_derivatives)},
}


def example(op_name: str, variant: str = "all", *, seed: int = 0, **sizes: int) -> Arguments:
    """Arguments of one op, with these sizes instead of ``SIZES``."""
    return EXAMPLES[op_name][variant](Draw(seed), **sizes)


VARIANTS = [(name, variant) for name, variants in EXAMPLES.items() for variant in variants]
