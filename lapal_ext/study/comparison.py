"""Compare the arms of an experiment: their paired differences from a reference, in order, and which one is best."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lapal_ext.study.configuration import Configuration
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.records import Record, Values, by_seed, mean_and_error
from lapal_ext.study.strategies import uses_unknown_labels

SIGNIFICANT = 2.0  # standard errors
_REFERENCES = ("base", "margin", "random")  # of paired differences: the first one that was run


class Ranking(NamedTuple):
    """Arms in the order of their mean difference from a reference, best first."""

    reference: str
    differences: dict[str, Values]  # [S] each, seed by seed; zeros for the reference

    @property
    def usable(self) -> list[str]:
        """Arms that can be run in practice in place of each other, best first."""
        return [name for name in self.differences if not stands_apart(name)]

    @property
    def apart(self) -> list[str]:
        """The other arms, best first."""
        return [name for name in self.differences if stands_apart(name)]

    @property
    def behind(self) -> list[str]:
        """Usable arms that are behind the reference by two standard errors, best first."""
        return [name for name in self.usable if is_behind(self.differences[name])]

    @property
    def close(self) -> list[str]:
        """Usable arms that are within one standard error of the best, which is not among them."""
        best, *others = self.usable or [self.reference]
        found = []
        for name in others:
            mean, error = mean_and_error(self.differences[best] - self.differences[name])
            if float(mean) <= float(error):
                found.append(name)
        return found


def rank(
    values: Mapping[str, Values],  # [S] each, higher is better
    reference: str,
) -> Ranking:
    """Order arms by their mean difference from a reference; arms that tie keep their order."""
    differences = {name: of_seeds - values[reference] for name, of_seeds in values.items()}
    return Ranking(reference, dict(sorted(differences.items(), key=lambda item: -float(item[1].mean()))))


def stands_apart(name: str) -> bool:
    """Whether an arm only shows what could be reached: by labels unknown in practice, or by a refit on all labels."""
    return name == "refit" or uses_unknown_labels(name)


def is_behind(
    difference: Values,  # [S]
) -> bool:
    """Whether a paired difference is below zero by two standard errors; never so with a single seed."""
    mean, error = mean_and_error(difference)
    return len(difference) > 1 and float(mean) < -SIGNIFICANT * float(error)


def ends(
    records: Sequence[Record],
    configuration: Configuration,
    field: str,
    added: int | None = None,
) -> dict[str, Values]:  # [S] each
    """Values of every arm after ``added`` new labels, or at the end of the curve if that is None.

    The base keeps the values that it had before. Arms without values are left out. All records must have the same prior
    precision.
    """
    found = {}
    for name in configuration.strategies:
        counts, of_seeds = by_seed(records, configuration.experiment, name, field)
        if counts:
            last = added is None or name == "base"
            found[name] = of_seeds[:, -1 if last else counts.index(configuration.initial_labels + (added or 0))]
    return found


def rank_arms(
    records: Sequence[Record],
    configuration: Configuration,
    reference: str,
    added: int | None = None,
) -> Ranking:
    """Rank the arms by their mean accuracy over the curve, or by the accuracy after some number of new labels.

    Args:
        records: of one prior precision.
        configuration: of the experiment.
        reference: the arm that differences are taken from.
        added: number of new labels; by default the largest one if the experiment absorbs labels.
    """
    if configuration.experiment != UPDATING:
        return rank(ends(records, configuration, "aulc"), reference)
    assert configuration.new_labels is not None
    most = max(configuration.new_labels) if added is None else added
    return rank(ends(records, configuration, "accuracy", most), reference)


def default_reference(configuration: Configuration) -> str:
    """Arm that paired differences are taken from by default."""
    names = configuration.strategies
    return next((name for name in _REFERENCES if name in names), names[0])
