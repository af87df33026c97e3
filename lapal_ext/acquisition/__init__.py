"""Which acquisitions there are, by name."""

import torch

from lapal_ext._checks import check_choice, check_generator
from lapal_ext.acquisition._scorer import Scorer
from lapal_ext.acquisition.custom import Acquisition, CustomScorer, random_acquisition
from lapal_ext.acquisition.uncertainty import UncertaintyScorer
from lapal_ext.likelihood import UTILITIES
from lapal_ext.pool import Pool
from lapal_ext.posterior import LastLayerLaplace

__all__ = ["ACQUISITIONS", "LINKS", "Acquisition", "Scorer", "check_acquisition", "make_scorer", "uses_variance"]

ACQUISITIONS = (*UTILITIES, "random")
LINKS = ("plugin", "mean_field")  # of a utility; Monte Carlo would make picks depend on the noise


def check_acquisition(acquisition: object, link: object, generator: object) -> None:
    """Raise a typed error unless ``make_scorer`` knows what to do with these."""
    if not callable(acquisition):
        check_choice("acquisition", acquisition, ACQUISITIONS)
    check_choice("link", link, LINKS)
    check_generator("generator", generator)


def uses_variance(acquisition: str | Acquisition, link: str) -> bool:
    """Whether the utilities depend on the covariance, so that updates matter even without labels."""
    return callable(acquisition) or acquisition == "variance" or (acquisition in UTILITIES and link == "mean_field")


def make_scorer(
    acquisition: str | Acquisition,
    posterior: LastLayerLaplace,
    pool: Pool,
    *,
    link: str,
    step: str,
    gamma: float,
    generator: torch.Generator | None,
) -> Scorer:
    """Start the state of a selection; all arguments are already checked."""
    if callable(acquisition):
        return CustomScorer(posterior, pool, acquisition, link, step, gamma)
    if acquisition == "random":
        return CustomScorer(posterior, pool, random_acquisition(generator), link, step, gamma)
    return UncertaintyScorer(posterior, pool, acquisition, link, step, gamma)
