import torch

from lapal_ext.study.data import load_digits, split


def test_parts_hold_every_row_once():
    data = load_digits()
    parts = split(data, seed=3)
    rows = torch.cat([parts.pool.features, parts.evaluation.features, parts.test.features])
    assert torch.equal(rows.unique(dim=0, return_counts=True)[1], data.features.unique(dim=0, return_counts=True)[1])
    assert len(rows) == len(data.features)
    assert float(data.features.max()) == 1.0


def test_labels_stay_with_their_rows():
    data = load_digits()
    parts = split(data, seed=3)
    for part in (parts.pool, parts.evaluation, parts.test):
        for features, target in zip(part.features[:20], part.targets[:20], strict=True):
            (row,) = (data.features == features).all(1).nonzero().tolist()
            assert data.targets[row[0]] == target


def test_split_follows_the_seed():
    data = load_digits()
    first, again, other = (split(data, seed).pool.features for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
