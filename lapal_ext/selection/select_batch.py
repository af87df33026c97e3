"""Building a batch one label at a time."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.references import References, Uncertainty
from lapal_ext.acquisition.registry import (
    check_acquisition,
    check_coverage,
    check_memory,
    choose_seed,
    default_acquisition,
    make_scorer,
    spec_of,
    uses_variance,
)
from lapal_ext.acquisition.scorer import check_utilities
from lapal_ext.acquisition.spec import KERNEL_MEMORY, Setting
from lapal_ext.entries import entry, outside_inference_mode
from lapal_ext.pool.feature_files import Features
from lapal_ext.pool.pool import Pool
from lapal_ext.pool.sharding import Ranks
from lapal_ext.posterior.arguments import check_features
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace, condition_on_rows
from lapal_ext.rules import Link, check_rule
from lapal_ext.selection.label_sources import AUTO, Targets, label_source
from lapal_ext.selection.progress import progress_bar
from lapal_ext.selection.selection_result import SelectionResult
from lapal_ext.validation.arrays import Array, Rows
from lapal_ext.validation.scalars import check_flag, check_integer
from lapal_ext.validation.tensors import as_labels

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@entry
@outside_inference_mode
@torch.no_grad()
def select_batch(
    posterior: LastLayerLaplace,
    pool: Features,  # [N, D]
    batch_size: int = 10,
    acquisition: str | Acquisition | None = None,
    targets: Targets = AUTO,
    step: str = "line_search",
    gamma: float = 1.0,
    update_every: int | None = None,
    link: str = "plugin",
    candidates: Rows | None = None,  # [K]
    generator: torch.Generator | None = None,
    progress: bool = False,
    labelled: Array | None = None,  # [L, D]
    exclude: Rows | None = None,  # [X]
    memory: float | None = None,
    group: "ProcessGroup | None" = None,
    references: References = None,  # an integer or [E] int64
    uncertainty: Uncertainty = None,  # a name or [N]
) -> SelectionResult:
    """Pick a batch greedily, with an update of the model between picks where the acquisition needs it.

    Args:
        posterior: a fitted model; not modified.
        pool: features of the unlabelled rows, [N, D]; half precision is not converted, and is read once per pick (a
            callable ``acquisition`` gets a copy in the dtype of the posterior). An
            array, a ``numpy.memmap`` or the path of a .npy or .safetensors file is read without a copy and may be
            larger than memory. Most acquisitions also keep [N, C] logits in memory.
        batch_size: rows to pick, at most N.
        acquisition: ``margin``, ``entropy``, ``least_confident``, ``variance`` or ``gradient_norm``, with the formulas
            of ``utilities``; ``uherding``, ``maxherding``, ``bald``, ``badge``, ``bait``, ``bait_forward_backward``,
            ``typiclust``, ``coreset``, ``probcover`` or ``power_margin``, with formula and source in their modules in
            ``lapal_ext.acquisition``; ``random``; or a callable (posterior, pool) -> utilities [N], higher is better.
            By default ``uherding`` if ``labelled`` is given, else ``margin``.
        targets: the labels to absorb. ``auto`` absorbs predicted labels for utilities, ``bald`` and callables, and none
            for the others, whose batches spread by themselves; if ``update_every`` is given, it is ``predicted``.
            ``predicted`` are those that the model predicts; ``sampled`` are drawn from its predictive. Labels [N] or a
            callable from row number to label simulate an annotator who answers before the next pick. None absorbs no
            labels, and picks the whole batch under the current model. With a smaller ``update_every`` it updates the
            covariance alone, which needs picks that depend on it: ``variance``, ``bald``, both forms of ``bait``,
            callables, and with ``link="mean_field"`` all acquisitions that use probabilities.
        step: ``line_search`` or ``newton``, see ``likelihood.step_length``.
        gamma: trust in the labels, >= 0.
        update_every: picks between updates, 1 to ``batch_size``; by default 1, or ``batch_size`` if no labels are
            absorbed.
        link: the predictive from which the utility is computed, ``plugin`` or ``mean_field``; for ``bald`` also ``mc``.
        candidates: the rows that may be picked, distinct integers [K]; all by default. The acquisition then uses only
            these rows, in ascending order. Draw a random subset once per batch, for any ``update_every``.
        generator: for ``sampled``, and for the acquisitions that draw: ``random``, ``badge``, ``typiclust``,
            ``probcover``, ``power_margin``, ``bald`` with ``mc``, and a sample of ``references``. A selection takes one
            number from it as their seed.
        progress: show a progress bar (needs rich).
        labelled: features of the rows that have labels, [L, D], which the posterior does not keep. ``uherding``,
            ``maxherding``, ``typiclust``, ``coreset`` and ``probcover`` avoid rows near them; the others do not use
            them.
        exclude: rows that may not be picked, distinct integers [X]. Unlike rows that are not in ``candidates`` they
            stay part of the pool, and nothing is copied. They count neither as labelled nor as picked, so similar rows
            may be picked.
        memory: bytes that the logits of the pool may take, unlimited by default. If [N, C] logits take more, utilities
            compute them for every pick again, in tiles of rows, O(N D C), with equal results up to rounding. ``bald``
            and ``badge`` do not support this. ``uherding``, ``maxherding`` and ``probcover`` keep no logits, and use
            as many bytes for kernel values or for pairs of near rows, 64 MiB by default.
        group: a process group of ``torch.distributed`` that shares the pool; each process has some of the rows, or
            none. All processes call this with the same arguments, except that ``pool``, and ``targets`` if it holds
            labels, are those of the calling process. Row numbers in ``candidates``, ``exclude`` and the result count
            the rows of all processes, in rank order. The result is the same on all ranks, and the same as in a single
            process. A callable ``acquisition`` gets the rows of its own process. A callable ``targets`` is called on
            rank 0 while the others wait, at most for the timeout of the group. ``typiclust`` and ``probcover`` do not
            support groups. O(D + C) numbers per pick are sent between ranks.
        references: for ``uherding`` and ``maxherding``, the rows over which coverage is summed: int64 [E] rows of the
            pool, candidates or not; or the size of a uniform sample of the candidates. By default all candidates, or a
            sample of 10,000 of them.
        uncertainty: for ``uherding``, how much each reference counts: the name of a utility, ``margin`` by default, or
            numbers [N] >= 0, one per row of ``pool``.

    Returns:
        The picks in order, their utilities, and a new posterior that has absorbed the labels assumed for them. Ties go
        to the lowest row.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.
        NotFittedError: ``fit`` has not been called.
        NotPSDError: the covariance is not positive semi-definite.
        RankError: another process of ``group`` stopped with an error, or no longer responds.

    O(D^2 + N (D + C)) per pick for the utilities: the pool is read once, and no model is refitted. The costs of the
    other acquisitions are in their modules.

    Example:
        >>> batch = select_batch(posterior, pool, 10, labelled=features, exclude=rows).indices
    """
    ranks = Ranks(group)
    with ranks.together():
        rows = Pool(posterior, pool, candidates, ranks)
        if candidates is not None:
            candidates = as_labels("candidates", candidates, rows.storage.device, rows=True)
        excluded = _excluded(rows, exclude)
        limit = rows.shard.total - len(excluded)
        if limit == 0:
            raise ValueError(
                f"no row is left to pick: pool has {rows.size} rows, of which candidates and exclude leave none"
            )
        batch_size = check_integer(
            "batch_size", batch_size, at_least=1, at_most=limit, limit="the rows that may be picked"
        )
        rule = check_rule(step, gamma, posterior.curvature)
        acquisition = default_acquisition(acquisition, labelled)
        chosen_link = check_acquisition(acquisition, link, generator, group)
        if isinstance(targets, str) and targets == AUTO:
            targets = spec_of(acquisition).batch_targets if update_every is None else "predicted"
        if update_every is None:
            update_every = batch_size if targets is None else 1
        update_every = check_integer("update_every", update_every, at_least=1, at_most=batch_size, limit="batch_size")
        references, uncertainty = check_coverage(acquisition, rows, references, uncertainty)
        if labelled is not None:
            labelled = check_features(posterior, labelled, name="labelled")
        check_flag("progress", progress)
        memory = check_memory(acquisition, posterior, rows, memory)
        labels = label_source(targets, rows, posterior, generator, ranks)
        if targets is None:
            _check_unlabelled(acquisition, chosen_link, update_every, batch_size)
            rule = rule._replace(gamma=0.0)  # an update without a label moves the covariance alone
        state = (posterior.mean, posterior.covariance, posterior.centre, posterior.scale)
        ranks.agree(
            posterior=torch.cat([part.flatten() for part in state]),
            curvature=rule.curvature,
            batch_size=batch_size,
            acquisition=acquisition if isinstance(acquisition, str) else "a callable",
            targets=targets if isinstance(targets, str) or targets is None else callable(targets),
            step=rule.step,
            gamma=rule.gamma,
            update_every=update_every,
            link=link,
            candidates=candidates,
            labelled=labelled,
            exclude=excluded,
            memory=memory,
            references=references,
            uncertainty="numbers" if isinstance(uncertainty, Tensor) else uncertainty,
        )
        # Drawn on all ranks, so that their generators stay equal.
        seed = torch.tensor(
            choose_seed(acquisition, chosen_link, rows.shard.total, generator, references), device="cpu"
        )
        seed = ranks.from_first(lambda: seed, seed)
        setting = Setting(
            posterior,
            rows,
            chosen_link,
            labelled,
            int(seed),
            references,
            uncertainty,
            memory,
            KERNEL_MEMORY if memory is None else memory,
        )
        scorer = make_scorer(acquisition, setting)
        scorer.withhold(excluded)
        chosen: list[tuple[Tensor, Tensor, Tensor]] = []
        groups = [min(update_every, batch_size - start) for start in range(0, batch_size, update_every)]
        with progress_bar("selecting", batch_size, shown=progress and ranks.rank == 0) as advance:
            for number, count in enumerate(groups, start=1):
                picks, utilities = scorer.pick(count)
                chosen.append((picks, utilities, labels(scorer, picks)))
                if number < len(groups):
                    scorer.absorb(picks, chosen[-1][2], rule)
                advance(count)
        picks, utilities, absorbed = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        check_utilities(utilities, "acquisition", named=isinstance(acquisition, str))
        indices = rows.to_rows(picks)
        if targets is None and update_every == batch_size:
            return SelectionResult(indices, utilities, posterior.clone())
        after = condition_on_rows(posterior, "pool", indices, rows.raw(picks), absorbed, rule.step, rule.gamma)
        return SelectionResult(indices, utilities, after)


def _check_unlabelled(acquisition: str | Acquisition, link: Link, update_every: int, batch_size: int) -> None:
    if update_every < batch_size and not uses_variance(acquisition, link):
        raise ValueError(
            "targets=None absorbs no labels, so that only an acquisition that uses the variance changes between "
            "picks: leave update_every out to pick the batch at once, or pass targets='predicted'; with "
            "link='mean_field', utilities, badge and uherding use the variance"
        )


def _excluded(rows: Pool, exclude: Rows | None) -> Tensor:  # [X] int64
    if exclude is None:
        return torch.zeros(0, dtype=torch.int64, device=rows.storage.device)
    return rows.to_picks(rows.check_rows("exclude", exclude), "exclude")
