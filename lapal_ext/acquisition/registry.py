"""Every strategy by name, and the functions that depend on its ``Spec``.

To add a strategy, write its module with a ``SPEC`` and add one line to ``STRATEGIES``.
"""

import torch

from lapal_ext.acquisition import (
    badge,
    bait,
    bald,
    coreset,
    custom,
    probcover,
    random,
    typiclust,
    uncertainty,
)
from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.scorer import Scorer
from lapal_ext.acquisition.spec import Setting, Spec
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.rules import Link, check_link
from lapal_ext.utilities import UTILITIES
from lapal_ext.validation.scalars import check_choice, check_generator, check_number

STRATEGIES: dict[str, Spec] = {
    **{kind: uncertainty.spec(kind) for kind in UTILITIES},
    "bald": bald.SPEC,
    "badge": badge.SPEC,
    "bait": bait.SPEC,
    "bait_forward_backward": bait.FORWARD_BACKWARD_SPEC,
    "typiclust": typiclust.SPEC,
    "coreset": coreset.SPEC,
    "probcover": probcover.SPEC,
    "random": random.SPEC,
}
ACQUISITIONS = tuple(STRATEGIES)


def spec_of(acquisition: str | Acquisition, name: str = "acquisition") -> Spec:
    """The spec of a strategy by name, or of a callable in the argument ``name``."""
    return custom.spec(acquisition, name) if callable(acquisition) else STRATEGIES[acquisition]


def check_acquisition(acquisition: object, link: object, generator: object, group: object = None) -> Link:
    """Return the link, or raise a typed error unless ``make_scorer`` supports these arguments."""
    if not callable(acquisition):
        check_choice("acquisition", acquisition, ACQUISITIONS)
    spec = spec_of(acquisition)  # type: ignore[arg-type]  # checked above
    chosen = check_link(link, spec.links)
    check_generator("generator", generator)
    if group is not None and spec.needs_all_rows:
        raise ValueError(f"acquisition must not need all rows in one process with group, got {acquisition!r}")
    return chosen


def check_memory(
    acquisition: str | Acquisition, posterior: LastLayerLaplace, pool: Pool, memory: object
) -> float | None:
    """Return ``memory`` or raise a typed error unless it is a number of bytes that the acquisition can work with."""
    if memory is None:
        return None
    memory = check_number("memory", memory, above=0.0)
    if spec_of(acquisition).keeps_logits and not _fits(posterior, pool, memory):
        needed = _bytes_of_logits(posterior, pool)
        raise ValueError(f"memory must be at least {needed} bytes for {acquisition!r}, which keeps all logits")
    return memory


def _fits(posterior: LastLayerLaplace, pool: Pool, memory: float | None) -> bool:
    return memory is None or _bytes_of_logits(posterior, pool) <= memory


def _bytes_of_logits(posterior: LastLayerLaplace, pool: Pool) -> int:
    """Bytes of the largest shard's logits and variances, so that all ranks make the same choice."""
    return pool.shard.largest * (posterior.num_classes + 1) * posterior.mean.element_size()


def uses_variance(acquisition: str | Acquisition, link: Link) -> bool:
    """Whether picks depend on the covariance, so that updates change them even without labels."""
    spec = spec_of(acquisition)
    return spec.uses_variance or (spec.uses_probabilities and link.uses_variance)


def draws(acquisition: str | Acquisition, link: Link) -> bool:
    """Whether picks depend on the seed."""
    return link.name in spec_of(acquisition).drawing_links


def choose_seed(acquisition: str | Acquisition, link: Link, generator: torch.Generator | None) -> int:
    """Seed of one selection; zero, without a draw from the generator, if picks do not depend on it."""
    if not draws(acquisition, link):
        return 0
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**31 - 1, (), generator=generator, device=device))


def make_scorer(
    acquisition: str | Acquisition,
    setting: Setting,
    *,
    name: str = "acquisition",
    memory: float | None = None,
) -> Scorer:
    """Make the scorer of one selection.

    Args:
        acquisition: by name, or a callable.
        setting: its inputs.
        name: the argument that holds a callable, for errors about its results.
        memory: bytes that the logits and variances of the pool may take, checked by ``check_memory``.
    """
    spec = spec_of(acquisition, name)
    if spec.make_tiled is not None and not _fits(setting.posterior, setting.pool, memory):
        return spec.make_tiled(setting)
    return spec.make(setting)
