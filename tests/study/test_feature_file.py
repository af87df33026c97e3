import random

import numpy as np
import pytest
import torch

from lapal_ext.errors import StorageError
from lapal_ext.study.feature_file import load_features


def arrays(**changes):
    draw = np.random.default_rng(0)
    values = {
        "x_train": draw.normal(size=(30, 4)).astype(np.float16),
        "y_train": (np.arange(30) % 3).astype(np.int16),
        "x_test": draw.normal(size=(9, 4)).astype(np.float16),
        "y_test": (np.arange(9) % 3).astype(np.int16),
        "class_names": np.array(["a", "b", "c"]),
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def written(path, **changes):
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays(**changes))
    return path


def test_a_good_file_is_read_as_it_is(tmp_path):
    data, expected = load_features(written(tmp_path / "set.npz")), arrays()
    assert data.num_classes == 3
    assert np.array_equal(data.train.features.numpy(), expected["x_train"].astype(np.float32))
    assert data.test.features.dtype == torch.float32
    assert data.train.targets.tolist() == expected["y_train"].tolist()
    assert data.test.targets.tolist() == expected["y_test"].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "it lacks x_test"),
        ({"class_names": None, "y_train": None}, "it lacks y_train, class_names"),
        ({"x_train": np.zeros(30, np.float32)}, "x_train must be a matrix of floats .* got float32 .30."),
        ({"x_train": np.zeros((30, 4), np.int64)}, "x_train must be a matrix of floats"),
        ({"x_test": np.zeros((0, 4), np.float32), "y_test": np.zeros(0, int)}, "x_test must .* at least one entry"),
        ({"x_test": np.zeros((9, 5), np.float32)}, "x_test must have 4 columns like x_train, got 5"),
        ({"x_train": np.full((30, 4), np.nan)}, "x_train must be finite"),
        ({"y_train": np.zeros(29, np.int64)}, "y_train must be 30 integers"),
        ({"y_test": np.zeros(9)}, "y_test must be 9 integers.* got float64"),
        ({"y_test": np.full(9, 3)}, r"y_test must lie in \[0, 3\).* got 3 to 3"),
        ({"y_train": np.full(30, -1)}, r"y_train must lie in \[0, 3\).* got -1"),
        ({"class_names": np.arange(3)}, "class_names must be a vector of two or more texts"),
        ({"class_names": np.array(["a", "b", None], dtype=object)}, "no feature set: Object arrays"),
    ],
)
def test_a_foreign_file_is_refused_with_its_fault(changes, message, tmp_path):
    with pytest.raises(StorageError, match=message):
        load_features(written(tmp_path / "set.npz", **changes))


@pytest.mark.parametrize("content", [b"", b"PK", b"x_train,y_train\n1,2\n", np.arange(9).tobytes()])
def test_files_of_other_formats_are_refused(content, tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"set\.npz is no feature set"):
        load_features(path)


def test_a_missing_file_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_features(tmp_path / "set.npz")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = written(tmp_path / "set.npz")
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(StorageError):
            load_features(path)


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    path = written(tmp_path / "set.npz")
    whole, good = path.read_bytes(), load_features(path)
    draw, refused = random.Random(0), 0
    for _ in range(400):
        bit = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            data = load_features(path)
        except StorageError:
            refused += 1
            continue
        # The bit was in a field without effect, such as a date.
        assert torch.equal(data.train.features, good.train.features), bit
        assert torch.equal(data.test.targets, good.test.targets), bit
        assert torch.equal(data.train.targets, good.train.targets), bit
        assert torch.equal(data.test.features, good.test.features), bit
        assert data.num_classes == good.num_classes, bit
    assert refused > 200
