"""Feature sets in ``.npz`` files, which are read without pickle and checked.

The arrays are ``x_train`` [N, D] and ``x_test`` [T, D] of floats, ``y_train`` [N] and ``y_test`` [T] of integers in
[0, C), and ``class_names`` [C] of text.
"""

import hashlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lapal_ext.errors import StorageError
from lapal_ext.pool.feature_files import NPY_DAMAGE

# Errors of zipfile for damaged files.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, NotImplementedError, RuntimeError, OSError)
_KEYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


class Labelled(NamedTuple):
    """Rows with their labels."""

    features: Tensor  # [N, D] float32
    targets: Tensor  # [N] int64


class FeatureSet(NamedTuple):
    """Features from an encoder, with the published split into training and test part."""

    train: Labelled
    test: Labelled
    num_classes: int


def checksum(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_features(path: str | os.PathLike[str]) -> FeatureSet:
    """Read a feature set and convert its features to float32.

    Raises:
        OSError: the file is missing or cannot be read.
        StorageError: the file is damaged, or is no feature set.
    """
    arrays = _read(Path(path))
    try:
        train, test = (_labelled(arrays, part) for part in ("train", "test"))
        names = arrays["class_names"]
        if names.ndim != 1 or names.dtype.kind != "U" or len(names) < 2:
            raise ValueError(f"class_names must be a vector of two or more texts, got {_kind(names)}")
        width, other = train.features.shape[1], test.features.shape[1]
        if other != width:
            raise ValueError(f"x_test must have {width} columns like x_train, got {other}")
        for part, name in ((train, "y_train"), (test, "y_test")):
            low, high = int(part.targets.min()), int(part.targets.max())
            if low < 0 or high >= len(names):
                raise ValueError(f"{name} must lie in [0, {len(names)}), one of class_names, got {low} to {high}")
    except ValueError as error:
        raise StorageError(f"{os.fspath(path)} is no feature set: {error}") from error
    return FeatureSet(train, test, len(names))


def save_features(path: str | os.PathLike[str], train: Labelled, test: Labelled, class_names: Sequence[str]) -> None:
    """Write a feature set with features in float16. Equal sets give equal bytes.

    Args:
        path: of the file, which may have any suffix, and is replaced if it exists.
        train: [N, D] and [N].
        test: [T, D] and [T].
        class_names: C names. Targets lie in [0, C).

    Raises:
        OSError: the file cannot be written.
    """
    with Path(path).open("wb") as file:
        np.savez_compressed(
            file,
            x_train=train.features.half().numpy(),
            y_train=train.targets.short().numpy(),
            x_test=test.features.half().numpy(),
            y_test=test.targets.short().numpy(),
            class_names=np.array(class_names),
        )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise StorageError(f"{path} is no feature set: it is not an .npz archive, or it is cut off")
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                missing = [key for key in _KEYS if f"{key}.npy" not in archive.namelist()]
                if missing:
                    raise StorageError(f"{path} is no feature set, or damaged: it lacks {', '.join(missing)}")
                # Unlike numpy.load, this reads whole members, so their checksums are verified before a header is used.
                members = {key: archive.read(f"{key}.npy") for key in _KEYS}
        except _DAMAGE as error:
            raise StorageError(f"{path} is damaged: {error}") from error
    try:
        return {key: np.lib.format.read_array(io.BytesIO(data), allow_pickle=False) for key, data in members.items()}
    except NPY_DAMAGE as error:
        raise StorageError(f"{path} is no feature set: {error}") from error


def _labelled(arrays: dict[str, NDArray[Any]], part: str) -> Labelled:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if x.ndim != 2 or x.dtype.kind != "f" or 0 in x.shape:
        raise ValueError(f"x_{part} must be a matrix of floats with at least one entry, got {_kind(x)}")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"y_{part} must be {len(x)} integers, one for each row of x_{part}, got {_kind(y)}")
    features = torch.from_numpy(x.astype(np.float32))
    if not bool(features.isfinite().all()):
        raise ValueError(f"x_{part} must be finite in float32")
    return Labelled(features, torch.from_numpy(y.astype(np.int64)))


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
