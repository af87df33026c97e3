import numpy as np
import pytest
import torch

from tests.cli.select.problem import CLASSES, FEATURES, LABELLED, NAMES, ROWS


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """Files of a small problem, in the current folder."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(ROWS + LABELLED) % CLASSES
    features = torch.randn(len(targets), FEATURES, generator=generator)
    features[:, :CLASSES] += 2.0 * torch.nn.functional.one_hot(targets, CLASSES)
    features = features.half()
    np.save(tmp_path / "pool.npy", features[LABELLED:].numpy())
    np.save(tmp_path / "train.npy", features[:LABELLED].numpy())
    np.save(tmp_path / "labels.npy", targets[:LABELLED].numpy())
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    (tmp_path / "texts.txt").write_text("\n".join(f"text of row {row}" for row in range(ROWS)))
    monkeypatch.chdir(tmp_path)
    return features[LABELLED:], features[:LABELLED].float(), targets[:LABELLED]
