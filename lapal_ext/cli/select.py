"""``lapal-ext select``: which rows of a pool to label next, as a file to hand out or one question at a time."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lapal_ext.cli._arguments import positive_number, whole_number
from lapal_ext.cli.answers import LabelFile, Line
from lapal_ext.cli.errors import CommandError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lapal_ext.posterior import LastLayerLaplace

_EXAMPLE = """\
example:
  lapal-ext select --pool pool.npy --features train.npy --labels labels.npy --out to_label.csv

The file has the columns row, utility and label. Fill in labels (numbers or names of classes, or
skip) and run the same command again: what is answered is absorbed, and what is not stays in the
file with as many new rows as --number asks for. With --interactive every answer is absorbed
before the next question, and the file is kept up to date; Ctrl-C keeps all answers."""

_MOST_CLASSES = 1_000_000


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "select",
        help="choose which rows of a pool to label next, or ask for their labels one by one",
        description="Fit a posterior to labelled features, and choose the rows of a pool whose labels would tell most.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    matrix = ".npy or .safetensors"
    add("--pool", required=True, type=Path, metavar="FILE", help=f"features to choose among, [N, D], {matrix}")
    add("--features", required=True, type=Path, metavar="FILE", help=f"labelled features, [L, D], {matrix}")
    add("--labels", required=True, type=Path, metavar="FILE", help="their labels, [L], integers, .npy")
    add("--out", required=True, type=Path, metavar="FILE.csv", help="the label file; what it holds already is absorbed")
    add("--head", type=Path, metavar="FILE", help="trained layer: weight [C, D] and bias [C], .safetensors")
    add(
        "--classes",
        metavar="N|FILE",
        help="how many, or a file of names, one per line (default: as many as the labels need)",
    )
    add("--number", type=whole_number(1), default=10, metavar="N", help="rows to choose (default: %(default)s)")
    add("--acquisition", default="margin", metavar="NAME", help="as in select_batch (default: %(default)s)")
    add("--prior-precision", type=positive_number, default=10.0, metavar="L", help="of the weights (default: 10)")
    add("--seed", type=whole_number(0), default=0, metavar="N", help="of acquisitions that draw (default: 0)")
    add("--memory", type=positive_number, metavar="MIB", help="for the logits of the pool (default: what they need)")
    add("--interactive", action="store_true", help="ask for labels on the terminal, one by one")
    add("--texts", type=Path, metavar="FILE", help="what a question shows of a row: its line in this file")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    import torch

    from lapal_ext.cli.interview import interview
    from lapal_ext.errors import NotPSDError
    from lapal_ext.memory_map import map_file
    from lapal_ext.selector import SequentialSelector

    try:
        pool = map_file("--pool", options.pool)
        features = map_file("--features", options.features).to(torch.promote_types(pool.dtype, torch.float32))
        labels, class_names = _labels(options)
        if len(labels) != len(features):
            raise CommandError(f"--labels must hold one label for each of {len(features)} features, got {len(labels)}")
        posterior = _posterior(options, features, labels, class_names)
        file = LabelFile(options.out, len(pool), class_names)
        if not options.interactive:
            _choose(posterior, pool, features, file, options)
            return
        generator = torch.Generator().manual_seed(options.seed)
        selector = SequentialSelector(
            posterior,
            pool,
            options.acquisition,
            generator=generator,
            labelled=features,
            memory=_bytes(options),
        )
        interview(selector, pool, file, options.number, class_names, options.texts)
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot read {error.filename}: {error.strerror}") from error
    except (NotPSDError, ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from error


def _bytes(options: argparse.Namespace) -> float | None:
    return None if options.memory is None else options.memory * 2**20


def _labels(options: argparse.Namespace) -> "tuple[Tensor, list[str]]":
    """Labels [L] and the names of the classes, which are their numbers unless there is a file."""
    import numpy as np
    import torch

    from lapal_ext.cli.interview import COMMANDS
    from lapal_ext.memory_map import load_npy

    if not options.labels.is_file():
        raise CommandError(f"--labels must be an existing file, got {options.labels}")
    array = load_npy(options.labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise CommandError(f"--labels must be a vector of integers, got {array.dtype} {list(array.shape)}")
    highest = int(array.max()) if len(array) else 0
    if highest >= _MOST_CLASSES:
        raise CommandError(f"--labels must be numbers of classes, below {_MOST_CLASSES}, got {highest}")
    labels = torch.from_numpy(array.astype(np.int64))
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
            raise CommandError(f"{options.classes} must not call a class {name!r}, which means something else")
        if name.isdigit() and name != str(number):
            raise CommandError(f"{options.classes} must not call class {number} {name!r}, the number of another")
    return labels, names


def _posterior(
    options: argparse.Namespace,
    features: "Tensor",  # [L, D]
    labels: "Tensor",  # [L] int64
    class_names: Sequence[str],
) -> "LastLayerLaplace":
    from lapal_ext.posterior import LastLayerLaplace

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


def _choose(
    posterior: "LastLayerLaplace",
    pool: "Tensor",  # [N, D]
    labelled: "Tensor",  # [L, D]
    file: LabelFile,
    options: argparse.Namespace,
) -> None:
    """Absorb what was answered, and put new rows behind those of the label file."""
    import torch

    from lapal_ext.selection import select_batch

    lines, rows = file.lines, torch.tensor([line.row for line in file.lines], dtype=torch.int64)
    number = min(options.number, len(pool) - len(lines))
    if number == 0:
        raise CommandError(f"every row of the pool is in {file.path} already")
    features = pool[rows].to(posterior.mean.dtype)
    told = torch.tensor([line.label is not None for line in lines], dtype=torch.bool)
    if told.any():
        posterior.update(features[told], torch.tensor([line.label for line in lines if line.label is not None]))
    for number_of_line, line in enumerate(lines):
        if line.waits:  # as within a batch: what is asked for already must not be asked for again in other words
            row = features[number_of_line : number_of_line + 1]
            posterior.update(row, posterior.predict_logits(row).argmax(1))
    result = select_batch(
        posterior,
        pool,
        number,
        options.acquisition,
        generator=torch.Generator().manual_seed(options.seed),
        labelled=torch.cat([labelled, features]),
        exclude=rows,
        memory=_bytes(options),
    )
    picks = zip(result.indices.tolist(), result.utilities.tolist(), strict=True)
    file.write([*lines, *(Line(row, f"{utility:.6g}") for row, utility in picks)])
    print(f"Answers absorbed: {int(told.sum())}. Rows chosen: {number}. Fill in their labels in {file.path}.")
    if waiting := sum(line.waits for line in lines):
        print(f"Rows of the file that still wait for a label: {waiting}.")
