"""Which acquisitions there are, by name."""

import torch
from torch import Tensor

from lapal_ext.acquisition.badge import BadgeScorer
from lapal_ext.acquisition.bait import BaitScorer
from lapal_ext.acquisition.bald import BaldScorer
from lapal_ext.acquisition.coreset import CoresetScorer
from lapal_ext.acquisition.custom import Acquisition, CustomScorer, random_acquisition
from lapal_ext.acquisition.probcover import ProbCoverScorer
from lapal_ext.acquisition.scorer import Scorer
from lapal_ext.acquisition.typiclust import TypiClustScorer
from lapal_ext.acquisition.uncertainty import TiledUncertaintyScorer, UncertaintyScorer
from lapal_ext.likelihood import UTILITIES
from lapal_ext.pool.pool import Pool
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.validation.tensors import check_choice, check_generator, check_number

__all__ = [
    "ACQUISITIONS",
    "LINKS",
    "Acquisition",
    "Scorer",
    "check_acquisition",
    "check_memory",
    "choose_seed",
    "draws",
    "make_scorer",
    "uses_variance",
]

ACQUISITIONS = (
    *UTILITIES,
    "bald",
    "badge",
    "bait",
    "bait_forward_backward",
    "typiclust",
    "coreset",
    "probcover",
    "random",
)
LINKS = ("plugin", "mean_field")  # of a utility; Monte Carlo would make picks depend on the noise
BALD_LINKS = (*LINKS, "mc")
_KEEP_LOGITS = ("bald", "badge")  # and cannot compute them tile by tile
_NEED_ALL_ROWS = ("typiclust", "probcover")  # in one process
_DRAWING = ("random", "badge", "typiclust", "probcover")


def check_acquisition(acquisition: object, link: object, generator: object, group: object = None) -> None:
    """Raise a typed error unless ``make_scorer`` knows what to do with these."""
    if not callable(acquisition):
        check_choice("acquisition", acquisition, ACQUISITIONS)
    check_choice("link", link, BALD_LINKS if acquisition == "bald" else LINKS)
    check_generator("generator", generator)
    if group is not None and acquisition in _NEED_ALL_ROWS:
        raise ValueError(f"acquisition must not need all rows in one process with group, got {acquisition!r}")


def check_memory(
    acquisition: str | Acquisition, posterior: LastLayerLaplace, pool: Pool, memory: object
) -> float | None:
    """Return ``memory`` or raise a typed error: no number of bytes, or too few for what keeps all logits."""
    if memory is None:
        return None
    memory = check_number("memory", memory, above=0.0)
    if acquisition in _KEEP_LOGITS and not _fits(posterior, pool, memory):
        needed = _bytes_of_logits(posterior, pool)
        raise ValueError(f"memory must be at least {needed} bytes for {acquisition!r}, which keeps all logits")
    return memory


def _fits(posterior: LastLayerLaplace, pool: Pool, memory: float | None) -> bool:
    return memory is None or _bytes_of_logits(posterior, pool) <= memory


def _bytes_of_logits(posterior: LastLayerLaplace, pool: Pool) -> int:
    """Of the largest shard, so that all ranks score in one way."""
    return pool.shard.largest * (posterior.num_classes + 1) * posterior.mean.element_size()


def uses_variance(acquisition: str | Acquisition, link: str) -> bool:
    """Whether picks depend on the covariance, so that updates matter even without labels.

    ``variance``, ``bald`` and both forms of BAIT always do, what is made of probabilities with the mean-field link, and
    a callable may. The others look at the mean of the model alone, or at none.
    """
    if callable(acquisition) or acquisition in ("variance", "bald", "bait", "bait_forward_backward"):
        return True
    return (acquisition in UTILITIES or acquisition == "badge") and link == "mean_field"


def draws(acquisition: str | Acquisition, link: str) -> bool:
    """Whether picks depend on the seed of ``make_scorer``."""
    return acquisition in _DRAWING or (acquisition == "bald" and link == "mc")


def choose_seed(acquisition: str | Acquisition, link: str, generator: torch.Generator | None) -> int:
    """Seed of one selection; zero, and the generator stays as it is, where nothing is drawn."""
    if not draws(acquisition, link):
        return 0
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(2**31 - 1, (), generator=generator, device=device))


def make_scorer(
    acquisition: str | Acquisition,
    posterior: LastLayerLaplace,
    pool: Pool,
    *,
    link: str,
    step: str,
    gamma: float,
    labelled: Tensor | None,  # [L, D]
    seed: int,
    name: str = "acquisition",
    memory: float | None = None,
) -> Scorer:
    """Start the state of a selection; all arguments are already checked.

    ``name`` is the argument that a callable came in, for errors about what it returns. ``memory`` is what the logits
    and variances of the pool may take, in bytes; ``check_memory`` comes first.
    """
    common = posterior, pool, link, step, gamma
    if acquisition in UTILITIES and not _fits(posterior, pool, memory):
        return TiledUncertaintyScorer(*common, acquisition)
    if callable(acquisition):
        return CustomScorer(*common, acquisition, name)
    match acquisition:
        case "random":
            return CustomScorer(*common, random_acquisition(seed, pool.shard), name)
        case "bald":
            return BaldScorer(*common, seed)
        case "badge":
            return BadgeScorer(*common, seed)
        case "bait" | "bait_forward_backward":
            return BaitScorer(*common, backward=acquisition == "bait_forward_backward")
        case "typiclust":
            return TypiClustScorer(*common, labelled, seed)
        case "coreset":
            return CoresetScorer(*common, labelled)
        case "probcover":
            return ProbCoverScorer(*common, labelled, seed)
    return UncertaintyScorer(*common, acquisition)
