"""Which ops must have a compiled kernel, and what a test does where one is missing."""

import os
from typing import NoReturn

import pytest

from lapal_ext import ops

# Per device; an op is added here by its name once its kernel is written.
NATIVE_OPS = {
    "cpu": {
        "absorb_labels",
        "badge_step_",
        "bait_step_",
        "coverage_gain",
        "directional_derivatives",
        "expected_lookahead",
        "inner_products",
        "kernel_coverage",
        "lookahead_loss",
        "mc_predictive",
        "nearest_distance_",
        "predictive",
        "predictive_variance",
        "rank_n_update",
        "rank_one_update",
        "selection_step_",
        "softmax_gradient",
        "update_coefficients",
        "utility",
    },
    "cuda": {
        "badge_step_",
        "bait_step_",
        "coverage_gain",
        "directional_derivatives",
        "expected_lookahead",
        "kernel_coverage",
        "lookahead_loss",
        "mc_predictive",
        "nearest_distance_",
        "predictive",
        "predictive_variance",
        "rank_one_update",
        "selection_step_",
        "softmax_gradient",
        "update_coefficients",
        "utility",
    },
}


def require_native(op_name: str, device: str) -> None:
    """Return if a compiled kernel serves the op; else skip by name, or fail where kernels are required."""
    if ops.backend(op_name, device) == "native":
        return
    info = ops.build_info()
    why = info["cuda"]["reason"] if device == "cuda" and info["native"] else info["reason"]
    skip_or_fail(f"no native {op_name} on {device}: {why or 'not compiled in'}")


def skip_or_fail(reason: str) -> NoReturn:
    """Skip by name where something native is missing; fail where it is required."""
    if os.environ.get("LAPAL_EXT_REQUIRE_NATIVE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
