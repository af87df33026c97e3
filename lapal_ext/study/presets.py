"""Experiments whose settings are fixed, so that they can be run by name."""

from lapal_ext.study.configuration import DIGITS, DIGITS_EVALUATION, Configuration
from lapal_ext.study.protocols import ACTIVE_LEARNING, UPDATING


def demo(seeds: int) -> tuple[Configuration, ...]:
    """Return the two experiments of the demo, both on scikit-learn's digits: absorbing labels, and active learning.

    They measure no calibration error, so that the extra ``demo`` is enough to run them.
    """
    updating = Configuration(
        experiment=UPDATING,
        data=DIGITS,
        data_sha256=None,
        strategies=("base", "official_10", "line_search", "refit"),
        seeds=seeds,
        prior_precisions=(10.0,),
        initial_labels=50,
        evaluation_rows=DIGITS_EVALUATION,
        new_labels=(1, 2, 5, 10, 20, 50),
        calibration=False,
    )
    active_learning = Configuration(
        experiment=ACTIVE_LEARNING,
        data=DIGITS,
        data_sha256=None,
        strategies=("random", "margin", "margin_predicted", "uherding", "uherding_updated", "look_ahead_true"),
        seeds=seeds,
        prior_precisions=(10.0,),
        initial_labels=10,
        evaluation_rows=DIGITS_EVALUATION,
        batch_size=10,
        acquisitions=9,
        refit_every=1,
        calibration=False,
    )
    return updating, active_learning
