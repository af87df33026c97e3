"""The data of the demo: scikit-learn's bundled handwritten digits, and a seeded split of them."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

_MAX_PIXEL = 16.0


class Labelled(NamedTuple):
    """Rows with their labels."""

    features: Tensor  # [N, D] float32
    targets: Tensor  # [N] int64


class Split(NamedTuple):
    """One seed's division of a data set; no row is in two parts."""

    pool: Labelled  # what may be labelled
    evaluation: Labelled  # where look-ahead takes its loss
    test: Labelled  # what is reported
    num_classes: int


def load_digits() -> Labelled:
    """1797 digits of 8 x 8 pixels in [0, 1], D = 64, C = 10; ships with scikit-learn, nothing is downloaded."""
    pixels, digits = sklearn_digits(return_X_y=True)
    features = torch.from_numpy(pixels).float() / _MAX_PIXEL
    return Labelled(features, torch.from_numpy(digits).long())


def split(data: Labelled, seed: int, pool_rows: int = 900, evaluation_rows: int = 300) -> Split:
    """Divide rows into pool, evaluation and test (the rest), each with the class proportions of the whole.

    Args:
        data: N rows.
        seed: of the division; the same seed gives the same rows.
        pool_rows: size of the pool.
        evaluation_rows: size of the part that look-ahead may see.
    """
    targets = data.targets.numpy()
    pool, held_out = train_test_split(
        torch.arange(len(targets)).numpy(), train_size=pool_rows, stratify=targets, random_state=seed
    )
    evaluation, test = train_test_split(
        held_out, train_size=evaluation_rows, stratify=targets[held_out], random_state=seed
    )
    pool, evaluation, test = (Labelled(data.features[rows], data.targets[rows]) for rows in (pool, evaluation, test))
    return Split(pool, evaluation, test, num_classes=int(targets.max()) + 1)
