"""Input files of ``lapal-ext select`` besides the pool: labels, names of classes, texts, a trained layer."""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select.label_file import COMMANDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

_MOST_CLASSES = 1_000_000


def read_labels(options: argparse.Namespace) -> "tuple[Tensor, list[str]]":
    """Labels [L] and the names of the classes; without a file of names these are their numbers."""
    import numpy as np
    import torch

    from lapal_ext.pool.feature_files import load_npy

    if not options.labels.is_file():
        raise CommandError(f"--labels must be an existing file, got {options.labels}")
    array = load_npy(options.labels)
    named = array.dtype.kind == "U" and options.classes is not None
    if array.ndim != 1 or not (named or array.dtype.kind in "iu"):
        raise CommandError(
            f"--labels must be a vector of integers, the numbers of classes, got {array.dtype} {list(array.shape)}: "
            f"{_way_out(array)}"
        )
    highest = int(array.max()) if len(array) and not named else 0
    if highest >= _MOST_CLASSES:
        raise CommandError(f"--labels must be numbers of classes, below {_MOST_CLASSES}, got {highest}")
    labels = torch.from_numpy(np.zeros(len(array), np.int64) if named else array.astype(np.int64))
    if options.classes is None:
        return labels, [str(number) for number in range(max(highest + 1, 2))]
    if options.classes.isascii() and options.classes.isdigit():
        count = int(options.classes) if len(options.classes) < 10 else _MOST_CLASSES + 1
        if count > _MOST_CLASSES:
            raise CommandError(f"--classes must be at most {_MOST_CLASSES}, got {options.classes}")
        return labels, [str(number) for number in range(count)]
    try:
        names = Path(options.classes).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--classes must be a number or a file of names, got {options.classes!r}") from error
    names = [name.strip() for name in names if name.strip()]
    if len(set(names)) < len(names):
        raise CommandError(f"{options.classes} must hold a different name for each class")
    for number, name in enumerate(names):
        if name.lower() in COMMANDS:
            raise CommandError(f"{options.classes} must not call a class {name!r}, which is a command")
        if name.isdigit() and name != str(number):
            raise CommandError(f"{options.classes} must not call class {number} {name!r}, the number of another class")
    if named:
        labels = torch.from_numpy(_numbers_of(array.tolist(), names, options.labels))
    return labels, names


def _numbers_of(labels: Sequence[str], names: Sequence[str], path: Path) -> "NDArray[np.int64]":
    import numpy as np

    numbers = {name: number for number, name in enumerate(names)}
    for row, label in enumerate(labels):
        if label not in numbers:
            raise CommandError(f"{path} must hold names that --classes has, got {label!r} in row {row}")
    return np.array([numbers[label] for label in labels], np.int64)


def _way_out(array: "NDArray[Any]") -> str:
    """What to save in place of an array that holds no labels."""
    if array.ndim == 2 and array.shape[1] == 1:
        return "save labels[:, 0]"
    if array.ndim != 1:
        return "save one label per row of --features, labels.argmax(1) where they are one-hot"
    if array.dtype.kind in "fb":
        return "save labels.astype(numpy.int64)"
    if array.dtype.kind in "US":
        return "give --classes a file with the names in the order of their numbers, and save names as str"
    return "save the numbers of the classes"


def check_texts(path: Path, n_rows: int) -> None:
    """Raise CommandError unless a file of texts has one line for each row of the pool."""
    with _opened(path) as file:
        n_lines = sum(1 for _ in file)
    if n_lines != n_rows:
        raise CommandError(f"--texts must have one line for each of the {n_rows} rows of the pool, got {n_lines}")


def texts_of(path: Path, rows: Sequence[int]) -> list[str]:
    """Lines of a file of texts, in the order of the rows."""
    wanted = set(rows)
    with _opened(path) as file:
        lines = {row: line.rstrip("\n") for row, line in enumerate(file) if row in wanted}
    return [lines.get(row, "") for row in rows]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            yield file
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from error


def make_posterior(
    options: argparse.Namespace,
    features: "Tensor",  # [L, D]
    labels: "Tensor",  # [L] int64
    class_names: Sequence[str],
) -> "LastLayerLaplace":
    """The posterior of the labelled rows, with the layer of ``--head`` if it is given."""
    from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

    if options.head is None:
        return LastLayerLaplace.fit_map(features, labels, len(class_names), options.prior_precision)
    head = _head(options.head, len(class_names)).to(features.dtype)
    return LastLayerLaplace.from_linear(head, features, options.prior_precision, standardize=True)


def _head(path: Path, n_classes: int) -> "nn.Linear":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        weight, bias = tensors["weight"], tensors.get("bias")
    except (SafetensorError, OSError, KeyError) as error:
        raise CommandError(f"--head must be a .safetensors file with weight and bias, got {path}: {error}") from error
    if weight.dim() != 2 or len(weight) != n_classes:
        raise CommandError(
            f"--head must have a weight of {n_classes} rows, one for each of --classes, got {list(weight.shape)}"
        )
    if not weight.is_floating_point():
        raise CommandError(f"--head must have a weight of floating point numbers, got {weight.dtype}")
    head: nn.Linear = torch.nn.utils.skip_init(
        torch.nn.Linear, weight.shape[1], n_classes, bias=bias is not None, dtype=weight.dtype
    )
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise CommandError(f"--head must hold weight [C, D] and bias [C] and nothing else, got {shapes}") from error
    return head
