"""The strategies that experiments compare: rules that absorb labels, and strategies that choose batches."""

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

_TOP_B = ("random", "margin", "entropy", "badge", "bait", "typiclust", "coreset", "bald")
_SEQUENTIAL = ("margin", "gradient_norm", "bait", "bald")
_LOOK_AHEAD = ("look_ahead_predicted", "expected_error_reduction", "look_ahead_true")
ACTIVE_STRATEGIES = (
    *_TOP_B,
    *(f"{name}_{labels}" for labels in ("predicted", "true") for name in _SEQUENTIAL),
)
LOOK_AHEAD_STRATEGIES = ("random", "margin", *_LOOK_AHEAD)
_MOST_UPDATES = 20  # per batch of expected error reduction, which then tries every label of every row again
# The 300 batches of arXiv 2210.06112, a hundred of each kind, and one each of margin and BAIT, which draw nothing.
# Large random batches are much alike, and none of them is as good as the batch of margin.
_PROPOSALS: Mapping[str, Any] = {
    "n_batches": 500,
    "proposals": ("random", "diverse", "informative", "margin", "bait"),
}
BATCH_STRATEGIES = (*ACTIVE_STRATEGIES, *_LOOK_AHEAD)


def describe(strategy: str) -> str:
    """Name of a strategy in tables and figures; it says if the strategy uses labels that are unknown in practice."""
    if strategy in _TOP_B:
        return strategy if strategy == "random" else f"{strategy}, top-b"
    if strategy == "look_ahead_true":
        return "look-ahead, true labels (upper bound)"
    if strategy == "look_ahead_predicted":
        return "look-ahead, predicted labels"
    if strategy == "expected_error_reduction":
        return "expected error reduction, predicted labels"
    for name in _SEQUENTIAL:
        if strategy == f"{name}_predicted":
            return f"sequential {name.replace('_', ' ')}, predicted labels"
        if strategy == f"{name}_true":
            return f"sequential {name.replace('_', ' ')}, true labels (label before next pick)"
    if strategy.startswith("official_"):
        return f"official rule, γ = {strategy.removeprefix('official_')}"
    for family in ("first_order", "monte_carlo"):
        if strategy.startswith(f"{family}_"):
            return f"{family.replace('_', ' ')}, γ = {strategy.removeprefix(f'{family}_')}"
    return strategy.replace("_", " ")


def choose_batch(
    strategy: str,
    model: LastLayerLaplace,
    labelled: Tensor,  # [L, D]
    unlabelled: Labelled,
    evaluation: Labelled,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:  # [b] int64, indices into the unlabelled rows
    """Choose a batch. Only strategies whose name ends in "true" use the labels of ``unlabelled`` and ``evaluation``."""
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
    if strategy in _TOP_B:
        return select_batch(
            model,
            pool,
            batch_size,
            strategy,
            None,
            update_every=batch_size,
            generator=generator,
            labelled=labelled,
        ).indices
    acquisition, _, source = strategy.rpartition("_")
    return select_batch(
        model, pool, batch_size, acquisition, targets if source == "true" else "predicted", labelled=labelled
    ).indices
