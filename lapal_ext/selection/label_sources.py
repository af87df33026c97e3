"""Sources of labels for a selection: the model, a draw from its predictive, a tensor, or a callable."""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from lapal_ext.acquisition.scorer import Scorer
from lapal_ext.pool.pool import Pool
from lapal_ext.pool.sharding import Ranks
from lapal_ext.posterior.class_names import class_numbers
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.validation.arrays import Labels
from lapal_ext.validation.scalars import check_choice, check_integer, type_name
from lapal_ext.validation.tensors import as_labels, check_labels, shape_text, way_out

SOURCES = ("predicted", "sampled")
AUTO = "auto"

Annotator = Callable[[int], int | str]
"""From a row number to the number or the name of a class."""

Targets = str | Labels | Annotator | None
"""``auto``, ``predicted``, ``sampled``, labels [N] of the pool, a callable from row number to label, or none."""

LabelSource = Callable[[Scorer, Tensor], Tensor]
"""(scorer, picks [k]) -> labels [k]."""


def label_source(
    targets: Targets, pool: Pool, posterior: LastLayerLaplace, generator: torch.Generator | None, ranks: Ranks
) -> LabelSource:
    """Check ``targets`` and return a function from picks to labels; None gives the predicted labels.

    With several ranks, rank 0 draws the labels or calls ``targets``.
    """
    if is_labels(targets):
        return _given(targets, pool, posterior)
    if callable(targets):
        return _asked(targets, pool, posterior, ranks)
    if targets is None:
        return predicted
    check_source(targets, (AUTO, *SOURCES))  # the caller has replaced "auto" itself
    return predicted if targets == "predicted" else _sampled(generator, ranks)


def is_labels(targets: object) -> TypeGuard[Labels]:
    """Whether ``targets`` are labels, not the name of a source or a callable."""
    return isinstance(targets, (Tensor, np.ndarray, list, tuple, range))


def check_source(targets: object, choices: Sequence[str] = SOURCES) -> None:
    """Raise a typed error unless ``targets`` names a source of labels, one of ``choices``."""
    if not isinstance(targets, str):
        raise TypeError(
            "targets must be a torch.Tensor, a NumPy array or name a source of labels, got "
            f"{type_name(targets)}{way_out(targets)}"
        )
    check_choice("targets", targets, choices)


def predicted(scorer: Scorer, picks: Tensor) -> Tensor:
    """The labels that the model predicts."""
    return scorer.predictive(picks).argmax(1)


def draw_labels(
    probabilities: Tensor,  # [k, C]
    generator: torch.Generator | None,
) -> Tensor:  # [k] int64
    """Draw one label per row; the generator may be of another device."""
    device = probabilities.device if generator is None else generator.device
    draws = torch.rand(len(probabilities), generator=generator, device=device, dtype=torch.float64)
    running = probabilities.double().cumsum(1)
    return (running > draws.to(running.device)[:, None] * running[:, -1:]).int().argmax(1)


def _sampled(generator: torch.Generator | None, ranks: Ranks) -> LabelSource:
    def draw(scorer: Scorer, picks: Tensor) -> Tensor:
        labels = draw_labels(scorer.predictive(picks), generator)  # on all ranks, so that their generators stay equal
        return ranks.from_first(lambda: labels, labels)

    return draw


def _given(targets: Labels, pool: Pool, posterior: LastLayerLaplace) -> LabelSource:
    numbers = class_numbers("targets", targets, posterior.class_names)
    labels = as_labels("targets", numbers, pool.storage.device)
    if labels.shape != (pool.rows_here,):
        raise ValueError(
            f"targets must have shape ({pool.rows_here},), one label per row of pool, got {shape_text(labels.shape)}"
        )
    check_labels("targets", labels, posterior.num_classes)
    labels = pool.local(labels)
    return lambda _, picks: pool.shard.gather(labels, picks)


def _asked(annotate: Annotator, pool: Pool, posterior: LastLayerLaplace, ranks: Ranks) -> LabelSource:
    last, names = posterior.num_classes - 1, posterior.class_names

    def answer(row: int) -> int:
        name, label = f"targets({row})", annotate(row)
        if names is not None:
            label = class_numbers(name, label, names)  # type: ignore[assignment]  # checked below
        return check_integer(name, label, at_least=0, at_most=last, limit="the last class")

    def ask(_: Scorer, picks: Tensor) -> Tensor:
        answers = [answer(row) for row in pool.to_rows(picks).tolist()]
        return torch.tensor(answers, dtype=torch.int64, device=picks.device)

    return lambda scorer, picks: ranks.from_first(lambda: ask(scorer, picks), picks)
