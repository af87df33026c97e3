"""Extracts features of a small network into a file, for the tests of these files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lapal_ext.features import ExtractedFeatures, extract

N = 23
BATCH = 4


class Interrupt(BaseException):
    """Simulates the end of the process."""


class Counting(nn.Module):
    """A small network that counts its input rows, and raises ``Interrupt`` after ``stop`` of them."""

    def __init__(self, seed: int = 0, *, slope: float = 0.1, stop: int = 10**9) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body, self.fc = nn.Linear(5, 6), nn.Linear(6, 3)
        self.act = nn.LeakyReLU(slope)
        self.rows, self.stop = 0, stop

    def forward(self, x: Tensor) -> Tensor:
        if self.rows >= self.stop:
            raise Interrupt
        self.rows += len(x)
        return self.fc(self.act(self.body(x)))


X = torch.linspace(-2, 2, N * 5).sin().view(N, 5)
Y = torch.arange(N) % 3
DATA = TensorDataset(X, Y)
PLAIN = extract(Counting(), DATA, batch_size=BATCH)


def run(path: Path, data: Any = DATA, model: Any = None, **options: Any) -> ExtractedFeatures:
    return extract(model or Counting(), data, path=path, **{"batch_size": BATCH, **options})


def check(result: ExtractedFeatures, expected: ExtractedFeatures = PLAIN) -> None:
    assert torch.equal(result.features, expected.features)
    assert torch.equal(result.targets, expected.targets)
    assert result.layer == expected.layer


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    return iter(zip(X.split(5), Y.split(5), strict=True))
