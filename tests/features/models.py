"""Small models with the interfaces of torchvision and of transformers."""

from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Digits(NamedTuple):
    images: Tensor  # [N, 1, 8, 8]
    labels: Tensor  # [N]


def digits() -> Digits:
    data = load_digits()
    return Digits(torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target))


class TinyCNN(nn.Module):
    """Like models of torchvision: a body, then ``fc``."""

    def __init__(self, *, width: int = 32, n_classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.Conv2d(16, width, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4 * width, n_classes)

    def features_of(self, images: Tensor) -> Tensor:
        return self.dropout(torch.flatten(self.avgpool(self.body(images)), 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features_of(images))


class Output(dict[str, Tensor]):
    """What models of transformers return."""


class TinyTransformer(nn.Module):
    """Like models of transformers: keyword arguments, a loss if there are labels, ``classifier`` at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.pooler = nn.Linear(12, 12)
        self.classifier = nn.Linear(12, 3)

    def pooled(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.embedding(input_ids) * attention_mask[..., None]
        return torch.tanh(self.pooler(states.sum(1) / attention_mask.sum(1, keepdim=True)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> Output:
        assert labels is None, "labels must not reach the model, which would compute a loss"
        return Output(logits=self.classifier(self.pooled(input_ids, attention_mask)))


def trained_cnn(images: Tensor, labels: Tensor, epochs: int = 60) -> TinyCNN:
    """Fitted by Adam in about a second; the global generator stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyCNN()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model


def features_of(model: Any, images: Tensor) -> Tensor:
    """What the last layer of a ``TinyCNN`` sees in evaluation mode, by its own code."""
    with torch.no_grad():
        modes = [module.training for module in model.modules()]
        model.eval()
        features = model.features_of(images)
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    return features


def seeded(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()
