"""The arms that experiments compare: rules that absorb labels, and strategies that choose batches."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lapal_ext.lookahead.expected_error_reduction import expected_error_reduction
from lapal_ext.lookahead.select_lookahead import select_lookahead
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import UpdateRule
from lapal_ext.selection.select_batch import select_batch
from lapal_ext.study.feature_file import Labelled

# The curvature of a rule is also the curvature of the covariance before the update.
UPDATE_RULES = {
    **{f"official_{gamma}": UpdateRule(float(gamma), "newton", "gaussian") for gamma in (1, 3, 10, 30)},
    "newton": UpdateRule(1.0, "newton", "categorical"),
    "line_search": UpdateRule(1.0, "line_search", "categorical"),
    "joint": UpdateRule(1.0, "joint", "categorical"),
}
# The smallest and the largest gamma of arXiv 2210.06112.
FIRST_ORDER = {f"first_order_{gamma}": gamma for gamma in (0.001, 0.005)}
MONTE_CARLO = {f"monte_carlo_{gamma}": gamma for gamma in (0.01, 0.05)}
UPDATING_STRATEGIES = ("base", *FIRST_ORDER, *MONTE_CARLO, *UPDATE_RULES, "refit")

_TOP_B = ("margin", "entropy", "bald")
_SPREAD = ("uherding", "maxherding", "badge", "bait", "typiclust", "coreset")  # their batches spread by themselves
_AT_ONCE = ("random", *_TOP_B, *_SPREAD)
_PREDICTED = ("margin", "gradient_norm", "bait", "bald")
_TRUE = (*_PREDICTED, "uherding")
_LOOK_AHEAD = ("look_ahead_predicted", "expected_error_reduction", "look_ahead_true")
_ONE_BY_ONE = (*(f"{name}_predicted" for name in _PREDICTED), *(f"{name}_true" for name in _TRUE))
BATCH_STRATEGIES = (*_AT_ONCE, *_ONE_BY_ONE, *_LOOK_AHEAD)
"""All that choose batches. An arm of an experiment is one of them, with or without the suffix ``UPDATED``."""
UPDATED = "_updated"
"""Suffix of an arm whose model is never refitted: it absorbs every batch by an update."""
ACTIVE_STRATEGIES = (*_AT_ONCE, f"uherding{UPDATED}", *_ONE_BY_ONE)
LOOK_AHEAD_STRATEGIES = ("random", "margin", *_LOOK_AHEAD)
_MOST_UPDATES = 20  # per batch of expected error reduction, which then tries every label of every row again
# The 300 batches of arXiv 2210.06112, a hundred of each kind, and one each of margin and BAIT, which draw nothing.
# Large random batches are much alike, and none of them is as good as the batch of margin.
_PROPOSALS: Mapping[str, Any] = {
    "n_batches": 500,
    "proposals": ("random", "diverse", "informative", "margin", "bait"),
}


def chooser(arm: str) -> str:
    """Strategy that chooses the batches of an arm."""
    return arm.removesuffix(UPDATED)


def is_refitted(arm: str) -> bool:
    """Whether the model of an arm is ever refitted after its first fit."""
    return not arm.endswith(UPDATED)


def uses_unknown_labels(arm: str) -> bool:
    """Whether an arm uses labels that are unknown in practice when a batch is chosen."""
    return chooser(arm).endswith("_true")


def describe(arm: str) -> str:
    """Name of an arm in tables and figures; it says if the arm uses labels that are unknown in practice."""
    if not is_refitted(arm):
        return f"{describe(chooser(arm))}, closed-form updates, never refitted"
    if arm in _TOP_B:
        return f"{arm}, top-b"
    if arm == "look_ahead_true":
        return "look-ahead, true labels (unknown in practice)"
    if arm == "look_ahead_predicted":
        return "look-ahead, predicted labels"
    if arm == "expected_error_reduction":
        return "expected error reduction, predicted labels"
    if arm in _ONE_BY_ONE:
        name, _, labels = arm.rpartition("_")
        which = "predicted labels" if labels == "predicted" else "true labels (label before next pick)"
        return f"sequential {name.replace('_', ' ')}, {which}"
    if arm.startswith("official_"):
        return f"official rule, γ = {arm.removeprefix('official_')}"
    for family in ("first_order", "monte_carlo"):
        if arm.startswith(f"{family}_"):
            return f"{family.replace('_', ' ')}, γ = {arm.removeprefix(f'{family}_')}"
    return arm.replace("_", " ")


def choose_batch(
    strategy: str,
    model: LastLayerLaplace,
    labelled: Tensor,  # [L, D]
    unlabelled: Labelled,
    evaluation: Labelled,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:  # [b] int64, indices into the unlabelled rows
    """Choose a batch by one of ``BATCH_STRATEGIES``.

    Only those whose name ends in "true" use the labels of ``unlabelled`` and ``evaluation``.
    """
    pool, targets = unlabelled
    if strategy == "expected_error_reduction":
        # The rows with the largest reduction are alike, and a batch of them is worse than a random one. Hence the model
        # is updated between picks.
        def reduction(posterior: LastLayerLaplace, rows: Tensor) -> Tensor:
            return -expected_error_reduction(posterior, rows, evaluation.features, "expected_cross_entropy")

        every = math.ceil(batch_size / _MOST_UPDATES)
        return select_batch(model, pool, batch_size, reduction, update_every=every).indices
    if strategy == "look_ahead_predicted":
        return select_lookahead(model, pool, evaluation.features, batch_size, **_PROPOSALS, generator=generator).indices
    if strategy == "look_ahead_true":
        return select_lookahead(
            model,
            pool,
            evaluation.features,
            batch_size,
            **_PROPOSALS,
            targets=targets,
            eval_targets=evaluation.targets,
            generator=generator,
        ).indices
    if strategy in _AT_ONCE:
        return select_batch(
            model, pool, batch_size, strategy, targets=None, generator=generator, labelled=labelled
        ).indices
    acquisition, _, source = strategy.rpartition("_")
    return select_batch(
        model, pool, batch_size, acquisition, targets if source == "true" else "predicted", labelled=labelled
    ).indices
