"""The parameters of an update (``UpdateRule``) and of the predictive (``Link``)."""

from collections.abc import Sequence
from typing import NamedTuple

from lapal_ext.likelihood import CURVATURES, MEAN_FIELD_FACTOR, STEPS
from lapal_ext.validation.scalars import check_choice, check_number


class UpdateRule(NamedTuple):
    """The parameters with which labels are absorbed; the fields are in the argument order of the ops."""

    gamma: float  # trust in the labels, >= 0
    step: str  # of STEPS (experiments also take ``joint``), see ``likelihood.step_length``
    curvature: str  # of CURVATURES, see ``likelihood.curvature_weight``


class Link(NamedTuple):
    """How logits and their variance become probabilities."""

    name: str
    kappa: float  # softmax(z / sqrt(1 + kappa v)) for mean_field; zero for the other links
    uses_variance: bool


LINKS = {
    "mean_field": Link("mean_field", MEAN_FIELD_FACTOR, uses_variance=True),
    "plugin": Link("plugin", 0.0, uses_variance=False),
    "mc": Link("mc", 0.0, uses_variance=True),  # the mean softmax of samples of the logits
}
EXACT_LINKS = ("plugin", "mean_field")  # those without samples


def check_rule(step: object, gamma: object, curvature: str) -> UpdateRule:
    """Return the rule, or raise a typed error that names ``step`` or ``gamma``."""
    check_choice("step", step, STEPS)
    check_choice("curvature", curvature, CURVATURES)
    return UpdateRule(check_number("gamma", gamma, at_least=0.0), str(step), curvature)


def check_link(link: object, allowed: Sequence[str] = EXACT_LINKS) -> Link:
    """Return the link with this name, or raise ValueError unless it is one of ``allowed``."""
    check_choice("link", link, allowed)
    return LINKS[str(link)]
