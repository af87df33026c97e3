"""The data of experiments: scikit-learn's digits or a file of features, split by a seed."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split

from lapal_ext.study.feature_file import FeatureSet, Labelled

_MAX_PIXEL = 16.0


class Split(NamedTuple):
    """A data set in three parts, which have no row in common."""

    pool: Labelled  # rows that may be labelled
    evaluation: Labelled  # rows on which look-ahead computes its loss
    test: Labelled  # rows on which models are measured
    num_classes: int


def load_digits() -> Labelled:
    """Return 1797 digits of 8 x 8 pixels in [0, 1], D = 64, C = 10. They are part of scikit-learn."""
    pixels, digits = sklearn_digits(return_X_y=True)
    features = torch.from_numpy(pixels).float() / _MAX_PIXEL
    return Labelled(features, torch.from_numpy(digits).long())


def split(data: Labelled, seed: int, pool_rows: int = 900, evaluation_rows: int = 300) -> Split:
    """Split rows into pool, evaluation and test (the rest), with the same class proportions in each part.

    Args:
        data: N rows.
        seed: of the split; the same seed gives the same rows.
        pool_rows: size of the pool.
        evaluation_rows: size of the evaluation part.
    """
    targets = data.targets.numpy()
    pool, held_out = train_test_split(
        torch.arange(len(targets), device="cpu").numpy(), train_size=pool_rows, stratify=targets, random_state=seed
    )
    evaluation, test = train_test_split(
        held_out, train_size=evaluation_rows, stratify=targets[held_out], random_state=seed
    )
    pool, evaluation, test = (Labelled(data.features[rows], data.targets[rows]) for rows in (pool, evaluation, test))
    return Split(pool, evaluation, test, num_classes=int(targets.max()) + 1)


def split_training(data: FeatureSet, seed: int, evaluation_rows: int) -> Split:
    """Keep the published test part, and split the training part into evaluation and pool (the rest).

    Args:
        data: with a training part of more than ``evaluation_rows`` rows.
        seed: of the split; the same seed gives the same rows.
        evaluation_rows: size of the evaluation part.
    """
    order = torch.randperm(
        len(data.train.targets), generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu"
    )
    parts = order[:evaluation_rows], order[evaluation_rows:]
    evaluation, pool = (Labelled(data.train.features[rows], data.train.targets[rows]) for rows in parts)
    return Split(pool, evaluation, data.test, data.num_classes)
