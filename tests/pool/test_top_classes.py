import numpy as np
import pytest
import torch

from lapal_ext import LastLayerLaplace
from lapal_ext.pool import top_classes as module
from lapal_ext.pool.top_classes import top_classes
from lapal_ext.tiles import row_tiles


@pytest.fixture
def model() -> LastLayerLaplace:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 5, generator=generator)
    return LastLayerLaplace.fit_map(features, torch.arange(60) % 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_tiles_join_to_the_classes_of_all_rows(model, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "row_tiles", lambda count: row_tiles(count, 32))
    pool = torch.randn(100, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    np.save(tmp_path / "pool.npy", pool.numpy())
    expected = model.predict_proba(pool.to(torch.float32), "plugin").sort(dim=1, descending=True)
    tiles = list(top_classes(model, tmp_path / "pool.npy", 3))
    assert [tile.rows for tile in tiles] == [slice(0, 32), slice(32, 64), slice(64, 96), slice(96, 100)]
    assert torch.cat([tile.classes for tile in tiles]).equal(expected.indices[:, :3])
    torch.testing.assert_close(torch.cat([tile.probabilities for tile in tiles]), expected.values[:, :3])


def test_errors_name_the_argument_and_the_row_of_the_pool(model, monkeypatch):
    monkeypatch.setattr(module, "row_tiles", lambda count: row_tiles(count, 32))
    pool = torch.zeros(80, 5)
    pool[70, 2] = torch.nan
    with pytest.raises(ValueError, match="pool must be finite, got NaN or infinity in row 70"):
        list(top_classes(model, pool))
    with pytest.raises(ValueError, match=r"pool must have shape \(N, 5\), got \(80, 4\)"):
        top_classes(model, pool[:, :4])
    with pytest.raises(ValueError, match=r"count must be at most 4 \(the number of classes\), got 5"):
        top_classes(model, pool, 5)
