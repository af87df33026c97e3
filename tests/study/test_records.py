import numpy as np
import pytest

from lapal_ext.study.records import Record, by_seed, mean_and_error


def curve(accuracies, seed):
    """Records of one seed at 10, 20, ... labels."""
    return [
        Record("active_learning", seed, "margin", 10.0, 10 * (i + 1), accuracy, 1.0, 0.5, None, None, None, None)
        for i, accuracy in enumerate(accuracies)
    ]


def test_mean_and_error():
    mean, error = mean_and_error(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2.0, 5.0]
    assert error.tolist() == [1.0, 0.0]
    assert mean_and_error(np.array([4.0]))[1] == 0.0


def test_rows_are_seeds_whatever_the_order():
    unordered = curve([0.1, 0.2], seed=1) + curve([0.3, 0.4], seed=0)
    labels, values = by_seed(unordered, "active_learning", "margin", "accuracy")
    assert labels == [10, 20]
    assert values.tolist() == [[0.3, 0.4], [0.1, 0.2]]


def test_a_missing_measurement_is_an_error():
    with pytest.raises(ValueError, match="active_learning/margin"):
        by_seed(curve([0.1, 0.2], seed=1) + curve([0.3], seed=0), "active_learning", "margin", "accuracy")
