"""Every strategy by name, and the functions that depend on its ``Spec``.

To add a strategy, write its module with a ``SPEC`` and add one line to ``STRATEGIES``.
"""

import torch
from torch import Tensor

from lapal_ext.acquisition import (
    badge,
    bait,
    bald,
    coreset,
    custom,
    herding,
    power_margin,
    probcover,
    random,
    typiclust,
    uncertainty,
)
from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.references import (
    References,
    Uncertainty,
    check_references,
    check_uncertainty,
    sample_size,
)
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
    "uherding": herding.UHERDING_SPEC,
    "maxherding": herding.MAXHERDING_SPEC,
    "power_margin": power_margin.SPEC,
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


def default_acquisition(acquisition: str | Acquisition | None, labelled: object) -> str | Acquisition:
    """The acquisition; ``uherding`` for None where the labelled rows are known, else ``margin``."""
    if acquisition is not None:
        return acquisition
    return "margin" if labelled is None else "uherding"


def check_coverage(
    acquisition: str | Acquisition, pool: Pool, references: References, uncertainty: Uncertainty
) -> tuple[int | Tensor | None, str | Tensor | None]:
    """Return ``references`` and ``uncertainty``, or raise a typed error unless the acquisition takes them."""
    spec = spec_of(acquisition)
    for name, value, taken in (
        ("references", references, spec.sums_over_references),
        ("uncertainty", uncertainty, spec.weighs_by_uncertainty),
    ):
        if value is not None and not taken:
            raise ValueError(f"{name} must be None for acquisition {acquisition!r}, which does not use it")
    return check_references(references, pool), check_uncertainty(uncertainty, pool)


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


def draws(acquisition: str | Acquisition, link: Link, rows: int, references: int | Tensor | None = None) -> bool:
    """Whether picks among so many rows depend on the seed."""
    spec = spec_of(acquisition)
    samples = spec.sums_over_references and sample_size(references, rows) is not None
    return samples or link.name in spec.drawing_links


def choose_seed(
    acquisition: str | Acquisition,
    link: Link,
    rows: int,
    generator: torch.Generator | None,
    references: int | Tensor | None = None,
) -> int:
    """Seed of one selection; zero, without a draw from the generator, if picks do not depend on it."""
    if not draws(acquisition, link, rows, references):
        return 0
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**31 - 1, (), generator=generator, device=device))


def make_scorer(acquisition: str | Acquisition, setting: Setting, *, name: str = "acquisition") -> Scorer:
    """Make the scorer of one selection.

    Args:
        acquisition: by name, or a callable.
        setting: its inputs; ``memory`` was checked by ``check_memory``.
        name: the argument that holds a callable, for errors about its results.
    """
    spec = spec_of(acquisition, name)
    if spec.make_tiled is not None and not _fits(setting.posterior, setting.pool, setting.memory):
        return spec.make_tiled(setting)
    return spec.make(setting)
