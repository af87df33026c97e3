"""The functional layer: one checked, dispatched op per module, with its reference beside it."""

from lapal_ext.ops.absorb_labels import absorb_labels
from lapal_ext.ops.badge_step_ import badge_step_
from lapal_ext.ops.bait_step_ import bait_step_
from lapal_ext.ops.coverage_gain import coverage_gain
from lapal_ext.ops.declare import OPS, Op, replace_ops, use_references
from lapal_ext.ops.directional_derivatives import directional_derivatives
from lapal_ext.ops.expected_lookahead import expected_lookahead
from lapal_ext.ops.inner_products import inner_products
from lapal_ext.ops.kernel_coverage import kernel_coverage
from lapal_ext.ops.loading import backend, build_info
from lapal_ext.ops.lookahead_loss import lookahead_loss
from lapal_ext.ops.mc_predictive import mc_predictive
from lapal_ext.ops.nearest_distance_ import nearest_distance_
from lapal_ext.ops.predictive import predictive
from lapal_ext.ops.predictive_variance import predictive_variance
from lapal_ext.ops.rank_n_update import rank_n_update
from lapal_ext.ops.rank_one_update import rank_one_update
from lapal_ext.ops.selection_step_ import selection_step_
from lapal_ext.ops.softmax_gradient import softmax_gradient
from lapal_ext.ops.update_coefficients import update_coefficients
from lapal_ext.ops.utility import utility

__all__ = [
    "OPS",
    "Op",
    "absorb_labels",
    "backend",
    "badge_step_",
    "bait_step_",
    "build_info",
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
    "replace_ops",
    "selection_step_",
    "softmax_gradient",
    "update_coefficients",
    "use_references",
    "utility",
]
