"""Candidate batches for look-ahead."""

from collections.abc import Callable

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.acquisition.clustering import cluster
from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.registry import choose_seed, draws, make_scorer
from lapal_ext.acquisition.scorer import check_utilities
from lapal_ext.acquisition.spec import Setting
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import Link

_UNCERTAIN_SHARE = 0.1  # share of the pool, by margin, from which "informative" batches are drawn
_UNCERTAIN_BATCHES = 5  # least number of rows from which they are drawn, in batch sizes

Propose = Callable[[Pool, int, int, torch.Generator | None], Tensor]
"""(pool, batch size b, number of batches M, CPU generator) -> batches [M, b] of distinct rows."""


def propose_random(
    pool: Pool, batch_size: int, count: int, generator: torch.Generator | None
) -> Tensor:  # [count, batch_size]
    """Rows drawn without replacement from the whole pool."""
    return _draw_rows(torch.arange(len(pool), device="cpu"), batch_size, count, generator).to(pool.storage.device)


def propose_informative(
    pool: Pool, batch_size: int, count: int, generator: torch.Generator | None
) -> Tensor:  # [count, batch_size]
    """Rows drawn without replacement from those with the smallest margin."""
    logits, _ = pool.latent(with_variance=False)
    margin = ops.utility(logits, None, None, "margin", 0.0)
    size = min(len(pool), max(_UNCERTAIN_BATCHES * batch_size, int(_UNCERTAIN_SHARE * len(pool))))
    uncertain = margin.sort(descending=True, stable=True).indices[:size]
    return _draw_rows(uncertain.cpu(), batch_size, count, generator).to(pool.storage.device)


def propose_diverse(
    pool: Pool, batch_size: int, count: int, generator: torch.Generator | None
) -> Tensor:  # [count, batch_size]
    """One row drawn from each of ``batch_size`` k-means clusters of the features (needs scikit-learn)."""
    features = pool.raw(torch.arange(len(pool), device=pool.storage.device)).cpu()
    seed = int(torch.randint(2**31 - 1, (), generator=generator, device="cpu"))
    clusters = cluster(features, batch_size, seed, needed_by="proposals 'diverse'")
    # Shuffle within each cluster and take the first row of every cluster. If duplicates leave fewer clusters than
    # ``batch_size``, second rows follow.
    draws = torch.rand(count, len(pool), generator=generator, dtype=torch.float64, device="cpu")
    order = (clusters + draws).argsort(dim=1)
    sizes = clusters.bincount(minlength=batch_size)
    starts = sizes.cumsum(0) - sizes
    place = torch.arange(len(pool), device="cpu") - starts[clusters[order]]
    first = (place + draws).topk(batch_size, dim=1, largest=False).indices
    return order.gather(1, first).to(pool.storage.device)


def propose_by_acquisition(
    acquisition: str | Acquisition,
    name: str,
    posterior: LastLayerLaplace,
    pool: Pool,
    batch_size: int,
    count: int,
    link: Link,
    labelled: Tensor | None,  # [L, D]
    generator: torch.Generator | None,
) -> Tensor:  # [m, batch_size], m <= count
    """Batches that an acquisition picks at once under the current model, without labels.

    A named acquisition gives ``count`` batches if it draws, else one. A callable is called until it repeats a batch.

    Raises:
        ValueError: the acquisition returned a utility that is not a number. The message begins with ``name``.
    """
    batches: list[Tensor] = []
    for _ in range(count):
        setting = Setting(posterior, pool, link, labelled, choose_seed(acquisition, link, len(pool), generator))
        picks, utilities = make_scorer(acquisition, setting, name=name).pick(batch_size)
        check_utilities(utilities, name, named=isinstance(acquisition, str))
        if callable(acquisition) and batches and torch.equal(picks, batches[-1]):
            break
        batches.append(picks)
        if not callable(acquisition) and not draws(acquisition, link, len(pool)):
            break
    return torch.stack(batches)


PROPOSALS: dict[str, Propose] = {
    "random": propose_random,
    "diverse": propose_diverse,
    "informative": propose_informative,
}


def _draw_rows(rows: Tensor, batch_size: int, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` batches of distinct entries of ``rows``."""
    draws = torch.rand(count, len(rows), generator=generator, device="cpu")
    return rows[draws.topk(batch_size, dim=1).indices]
