"""A model and its inputs, for the tests of ``extract``."""

from typing import Any

import torch
from torch import Tensor

from tests.features.models import TinyCNN, digits, features_of, seeded

IMAGES, LABELS = digits()
X, Y = IMAGES[:50], LABELS[:50]
MODEL = seeded(TinyCNN).train()  # training mode, in which its features would differ
INPUT_IDS = torch.arange(40).view(10, 4) % 50
MASK = (torch.arange(4) < 1 + torch.arange(10)[:, None] % 4).long()


def expected(model: Any = MODEL) -> Tensor:
    return features_of(model, X)
