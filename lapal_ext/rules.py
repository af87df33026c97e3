"""How labels are absorbed, and how predictions are read: ``UpdateRule`` and ``Link``."""

from collections.abc import Sequence
from typing import NamedTuple

from lapal_ext.likelihood import CURVATURES, MEAN_FIELD_FACTOR, STEPS
from lapal_ext.validation.scalars import check_choice, check_number


class UpdateRule(NamedTuple):
    """How one label after another moves the posterior; fields are in the order in which ops take them."""

    gamma: float  # trust in the labels, >= 0
    step: str  # of STEPS, see ``likelihood.step_length``
    curvature: str  # of CURVATURES, see ``likelihood.curvature_weight``


class Link(NamedTuple):
    """How logits and their variance become probabilities."""

    name: str
    kappa: float  # softmax(z / sqrt(1 + kappa v)); zero where the variance is not used that way
    uses_variance: bool


LINKS = {
    "mean_field": Link("mean_field", MEAN_FIELD_FACTOR, uses_variance=True),
    "plugin": Link("plugin", 0.0, uses_variance=False),
    "mc": Link("mc", 0.0, uses_variance=True),  # the mean softmax of samples of the logits
}
EXACT_LINKS = ("plugin", "mean_field")  # those that draw nothing


def check_rule(step: object, gamma: object, curvature: str) -> UpdateRule:
    """Return the rule, or raise a typed error that names ``step`` or ``gamma``."""
    check_choice("step", step, STEPS)
    check_choice("curvature", curvature, CURVATURES)
    return UpdateRule(check_number("gamma", gamma, at_least=0.0), str(step), curvature)


def check_link(link: object, allowed: Sequence[str] = EXACT_LINKS) -> Link:
    """Return the link of that name, or raise ValueError."""
    check_choice("link", link, allowed)
    return LINKS[str(link)]
