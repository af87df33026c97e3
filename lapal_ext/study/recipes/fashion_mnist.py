"""Fashion-MNIST (Zalando, MIT), encoded by EfficientNet-Lite0 and reduced to 384 principal components.

The images are in the Debian package ``dataset-fashion-mnist``.
"""

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.recipes.debian import package_files
from lapal_ext.study.recipes.encoders import IMAGE_PACKAGES, encode_images
from lapal_ext.study.recipes.recipe import Made, Recipe, RecipeError

_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
_BYTES = 8  # code of the element type in IDX
_TRAIN_ROWS, _TEST_ROWS, _FEATURES = 8000, 2000, 384
_SEED = 0


def read_idx(data: bytes) -> Tensor:  # uint8, of the shape that the header gives
    """Read an array of bytes in the format IDX.

    It has two zeros, the type, the number of dimensions, each size as a big-endian int32, and the values.

    Raises:
        RecipeError: the data have another format, or are cut off.
    """
    head = 4 + 4 * data[3] if data[:3] == bytes([0, 0, _BYTES]) and len(data) > 4 else 0
    sizes = [int.from_bytes(data[at : at + 4], "big") for at in range(4, head, 4)]
    if not sizes or len(data) != head + math.prod(sizes):
        raise RecipeError(f"a file of Fashion-MNIST is damaged: {len(data)} bytes are no IDX array of bytes")
    return torch.frombuffer(bytearray(data[head:]), dtype=torch.uint8).view(sizes)


def _read(path: Path) -> Tensor:
    return read_idx(gzip.decompress(path.read_bytes()))


def _make(progress: bool) -> Made:
    from sklearn.decomposition import PCA

    with package_files("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist", _FILES) as paths:
        train_images, train_targets, test_images, test_targets = map(_read, paths)
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    train = torch.randperm(len(train_images), generator=generator, device="cpu")[:_TRAIN_ROWS]
    test = torch.randperm(len(test_images), generator=generator, device="cpu")[:_TEST_ROWS]
    features = encode_images(torch.cat([train_images[train], test_images[test]]), progress).double().numpy()
    pca = PCA(_FEATURES, svd_solver="covariance_eigh").fit(features[: len(train)])
    pooled = torch.from_numpy(pca.transform(features)).float()
    return Made(
        Labelled(pooled[: len(train)], train_targets[train].long()),
        Labelled(pooled[len(train) :], test_targets[test].long()),
        _NAMES,
    )


RECIPE = Recipe(
    "10,000 images through EfficientNet-Lite0, some minutes; downloads 31 MB unless installed",
    IMAGE_PACKAGES | {"sklearn": "scikit-learn"},
    _make,
)
