"""Input files of ``lapal-ext select`` besides the pool: labels, names of classes, a trained layer."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select.classes import MOST, Classes, whole_number
from lapal_ext.cli.select.label_studio_file import classes_of
from lapal_ext.cli.text_files import read_lines
from lapal_ext.pool.row_ids import composed
from lapal_ext.posterior.class_names import closest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


def read_labels(options: argparse.Namespace) -> "tuple[Tensor | None, Classes]":
    """Labels [L], or None without ``--labels``; and the classes, which are numbers without names."""
    import numpy as np
    import torch

    declared = _declared(options)
    if options.labels is None:
        by_name = options.label_studio is not None
        return None, Classes([], grows=True, by_name=by_name) if declared is None else declared
    array = _read_array(options.labels)
    named = array.dtype.kind == "U" and array.ndim == 1
    if array.ndim != 1 or not (named or array.dtype.kind in "iu"):
        raise CommandError(
            f"--labels must be a vector of integers, the numbers of classes, got {array.dtype} {list(array.shape)}: "
            f"{_way_out(array)}"
        )
    if named:
        names = [composed(name) for name in array.tolist()]
        classes = declared
        if classes is None:
            _check_kind(names, options.labels)
            if all(map(str.isdigit, names)):
                raise CommandError(
                    f"{options.labels} holds numbers as str: convert them with labels.astype(int), or pass --classes "
                    "with their names"
                )
            classes = Classes(sorted(set(names)), grows=options.new_classes, source=options.labels)
            if len(classes) < 2:
                raise CommandError(f"{options.labels} must hold labels of at least 2 classes, or pass --classes")
        return torch.from_numpy(_numbers_of(names, classes.names, options.labels)), classes
    highest = int(array.max()) if len(array) else 0
    if highest >= MOST:
        raise CommandError(f"--labels must be numbers of classes, below {MOST}, got {highest}")
    labels = torch.from_numpy(array.astype(np.int64))
    if declared is None:
        declared = Classes(map(str, range(max(highest + 1, 2))), grows=options.new_classes)
    wrong = array[(array < 0) | (array >= len(declared))]
    if len(wrong) > 0:
        raise CommandError(f"--labels must be numbers of classes, in [0, {len(declared)}), got {wrong[0]}")
    return labels, declared


def _declared(options: argparse.Namespace) -> Classes | None:
    """The classes of ``--classes`` or ``--label-config``."""
    if options.label_config is not None and (found := classes_of(options)) is not None:
        if options.classes is not None:
            raise CommandError("--label-config has the classes: leave out --classes")
        return found
    if options.classes is None:
        return None
    if options.classes.isascii() and options.classes.isdigit():
        count = int(options.classes) if len(options.classes) < 10 else MOST + 1
        if not 2 <= count <= MOST:
            bound = f"at most {MOST}" if count > MOST else "at least 2"
            raise CommandError(f"--classes must be {bound}, got {options.classes}")
        return Classes(map(str, range(count)), grows=options.new_classes)
    path = Path(options.classes)
    if not path.is_file():
        raise CommandError(f"--classes must be a number or a file of names, got {options.classes!r}")
    try:
        names = [name.strip() for name in read_lines("--classes", path) if name.strip()]
    except CommandError as error:
        raise CommandError(f"--classes must be a number or a file of names: {error}") from error
    if len(names) < 2 and not options.new_classes:
        raise CommandError(f"{path} must hold the names of at least 2 classes, one per line, got {len(names)}")
    return Classes(names, grows=options.new_classes, source=path)


def _read_array(path: Path) -> "NDArray[Any]":
    """The array of a .npy file, or the lines of a .txt file: numbers if all of them are, else names."""
    import numpy as np

    from lapal_ext.pool.feature_files import load_npy

    if not path.is_file():
        raise CommandError(f"--labels must be an existing file, got {path}")
    if path.suffix in (".npy", ".npz"):
        return load_npy(path)
    if path.suffix != ".txt":
        raise CommandError(
            f"--labels must be a .npy file, or a .txt file with one label per line and nothing else, got {path}: save "
            "its column of labels as labels.txt, without a title"
        )
    lines = [line.strip() for line in read_lines("--labels", path)]
    for number, line in enumerate(lines, 1):
        if not line:
            raise CommandError(
                f"{path}, line {number}: must hold a label, since each line is that of one row of --features"
            )
    numbers = [whole_number(line) for line in lines]
    return np.array(lines if None in numbers else numbers)


def _check_kind(labels: Sequence[str], path: Path) -> None:
    """Raise CommandError if some labels are numbers and some are not: one slip would make names of all numbers."""
    are_numbers = [whole_number(label) is not None for label in labels]
    if not any(are_numbers) or all(are_numbers):
        return
    most = 2 * sum(are_numbers) >= len(labels)
    row = are_numbers.index(not most)
    kind = "numbers" if most else "names"
    raise CommandError(
        f"{path}, label {row + 1}: labels must be all numbers or all names, got {labels[row]!r} where others are {kind}"
    )


def _numbers_of(labels: Sequence[str], names: Sequence[str], path: Path) -> "NDArray[np.int64]":
    import numpy as np

    numbers = {name: number for number, name in enumerate(names)}
    for row, label in enumerate(labels):
        if label not in numbers:
            meant = closest(label, names)
            hint = "" if meant is None else f": did you mean {meant}?"
            raise CommandError(f"{path} must hold names that --classes has, got {label!r} in row {row}{hint}")
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


def read_head(path: Path, n_classes: int) -> "nn.Linear":
    """The trained layer of ``--head``."""
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
