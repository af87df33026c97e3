"""Look-ahead as a strategy: propose batches, try them all, keep the best."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.entries import entry, outside_inference_mode
from lapal_ext.lookahead.evaluation import check_evaluation
from lapal_ext.lookahead.look_ahead import look_ahead
from lapal_ext.lookahead.proposals import PROPOSALS, propose_by_acquisition
from lapal_ext.pool.feature_files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.arguments import check_features
from lapal_ext.posterior.class_names import class_numbers
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import Link, check_rule
from lapal_ext.selection.label_sources import check_source, draw_labels, is_labels
from lapal_ext.selection.selection_result import SelectionResult
from lapal_ext.validation.arrays import Array, Labels, Rows
from lapal_ext.validation.scalars import check_choice, check_generator, check_integer
from lapal_ext.validation.tensors import as_labels, check_labels, shape_text


@entry
@outside_inference_mode
@torch.no_grad()
def select_lookahead(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    eval_features: Array,  # [E, D]
    batch_size: int = 10,
    n_batches: int = 300,
    targets: str | Labels = "predicted",  # or [N]
    eval_targets: Labels | None = None,  # [E]
    loss: str | None = None,
    proposals: Sequence[str | Acquisition] = ("random", "diverse", "informative"),
    n_label_samples: int = 1,
    step: str = "line_search",
    gamma: float = 1.0,
    link: str = "plugin",
    generator: torch.Generator | None = None,
    candidates: Rows | None = None,  # [K]
    labelled: Array | None = None,  # [L, D]
) -> SelectionResult:
    """Pick the best of many proposed batches by the loss that the model would have after each.

    With true ``targets`` and ``eval_targets`` this is the paper's "optimal" strategy, for comparison alone, since the
    labels are not known when it chooses. It is no upper bound: it is the best of the batches that were proposed.

    Args:
        posterior: a fitted model; not modified.
        pool: [N, D].
        eval_features: the evaluation points, [E, D].
        batch_size: rows per batch, at most N.
        n_batches: batches to try at most, shared evenly among the proposals.
        targets: labels to assume: ``predicted``, ``sampled`` from the predictive, or labels [N]. True labels make the
            strategy one for comparison alone.
        eval_targets: labels of the evaluation points, [E]; for ``cross_entropy``, ``zero_one`` and ``brier``, and for
            these alone.
        loss: one of those, or ``expected_cross_entropy`` or ``expected_zero_one``; by default ``cross_entropy`` with
            ``eval_targets``, else ``expected_zero_one``, as in ``look_ahead``.
        proposals: where the batches come from: ``random`` rows, ``diverse`` (one row from each k-means cluster, needs
            scikit-learn), ``informative`` (random among the rows with the smallest margin), and any acquisition of
            ``select_batch``, by name or as a callable, for the batch that it picks at once under the current model. An
            acquisition that draws, like ``badge``, gives different batches; any other gives a single one.
        n_label_samples: label vectors that ``sampled`` averages the loss over.
        step: ``line_search`` or ``newton``.
        gamma: trust in the labels, >= 0.
        link: ``plugin`` or ``mean_field``.
        generator: a CPU generator, for proposals and ``sampled``.
        candidates: the rows that may be picked, distinct, [K]: integers of any type, in a tensor, an array or a list;
            all by default.
        labelled: features of the rows that have labels, [L, D], for proposals that avoid rows near them.

    Returns:
        The best batch, minus its loss as the utility of each of its rows, and the posterior that has absorbed it; with
        several label samples, the last of them.

    Source: arXiv 2210.06112, section 5.3; trying all batches in Gram space is ours.
    """
    rows = Pool(posterior, pool, candidates)
    batch_size = check_integer(
        "batch_size", batch_size, at_least=1, at_most=len(rows), limit="the rows that may be picked"
    )
    if not isinstance(proposals, Sequence):
        raise TypeError(f"proposals must be a sequence of names and callables, got {type(proposals).__name__}")
    names = (proposals,) if isinstance(proposals, str) else tuple(proposals)
    if not names:
        raise ValueError("proposals must name at least one source of batches")
    for name in names:
        if not callable(name):
            check_choice("proposals", name, tuple(dict.fromkeys((*PROPOSALS, *ACQUISITIONS))))
    n_batches = check_integer("n_batches", n_batches, at_least=len(names))
    n_label_samples = check_integer("n_label_samples", n_label_samples, at_least=1)
    evaluation = check_evaluation(posterior, eval_features, eval_targets, loss, link)
    rule = check_rule(step, gamma, posterior.curvature)
    check_generator("generator", generator, torch.device("cpu"))
    if labelled is not None:
        labelled = check_features(posterior, labelled, name="labelled")
    if is_labels(targets):
        numbers = class_numbers("targets", targets, posterior.class_names)
        labels = as_labels("targets", numbers, rows.storage.device)
        if labels.shape != (rows.size,):
            raise ValueError(f"targets must have shape ({rows.size},), got {shape_text(labels.shape)}")
        check_labels("targets", labels, posterior.num_classes)
        labels = labels[rows.to_rows(torch.arange(len(rows), device=labels.device))]
    else:
        check_source(targets)
    repeats = n_label_samples if isinstance(targets, str) and targets == "sampled" else 1

    shares = [n_batches // len(names) + (i < n_batches % len(names)) for i in range(len(names))]
    batches = torch.cat(
        [
            PROPOSALS[name](rows, batch_size, share, generator)
            if isinstance(name, str) and name in PROPOSALS
            else propose_by_acquisition(
                name, f"proposals[{i}]", posterior, rows, batch_size, share, evaluation.link, labelled, generator
            )
            for i, (name, share) in enumerate(zip(names, shares, strict=True))
        ]
    )
    total = torch.zeros(len(batches), dtype=torch.float64, device=batches.device)
    for _ in range(repeats):
        if isinstance(targets, str):
            labels = _assumed_labels(rows, targets, evaluation.link, generator)
        total += look_ahead(
            posterior,
            rows.storage,
            batches,
            labels,
            evaluation.features,
            evaluation.targets,
            evaluation.loss,
            rule.step,
            rule.gamma,
            link,
        ).double()
    best = int(total.argmin())
    batch = batches[best]
    after = posterior.condition_on(rows.raw(batch), labels[batch], rule.step, rule.gamma)
    value = -(total[best] / repeats).to(posterior.mean.dtype)
    return SelectionResult(rows.to_rows(batch).clone(), value.expand(batch_size).clone(), after)


def _assumed_labels(pool: Pool, targets: str, link: Link, generator: torch.Generator | None) -> Tensor:  # [K]
    logits, variance = pool.latent(with_variance=link.uses_variance)
    if targets == "predicted":
        return logits.argmax(1)
    return draw_labels(ops.predictive(logits, variance, link.kappa), generator)
