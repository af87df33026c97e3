"""``lapal-ext select``: which rows of a pool to label next, as a file to hand out or one question at a time."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lapal_ext.cli import answers
from lapal_ext.cli._arguments import positive_number, whole_number
from lapal_ext.cli.answers import Line
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
        help="how many, or a file of names, one per line (default: the labels' largest)",
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
        features = map_file("--features", options.features)
        labels, class_names = _labels(options)
        posterior = _posterior(options, features, labels, class_names)
        lines = answers.read(options.out, len(pool), class_names)
        labelled = features.to(posterior.mean.dtype)
        if not options.interactive:
            _choose(posterior, pool, labelled, lines, class_names, options)
            return
        generator = torch.Generator().manual_seed(options.seed)
        selector = SequentialSelector(
            posterior,
            pool,
            options.acquisition,
            generator=generator,
            labelled=labelled,
            memory=_bytes(options),
        )
        interview(selector, pool, lines, options.number, options.out, class_names, options.texts)
    except (FileNotFoundError, NotPSDError, ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from error


def _bytes(options: argparse.Namespace) -> float | None:
    return None if options.memory is None else options.memory * 2**20


def _labels(options: argparse.Namespace) -> "tuple[Tensor, list[str]]":
    """Labels [L] and the names of the classes, which are their numbers unless there is a file."""
    import numpy as np
    import torch

    try:
        array = np.load(options.labels, allow_pickle=False)
    except FileNotFoundError as error:
        raise CommandError(f"--labels must be an existing file, got {options.labels}") from error
    except (ValueError, EOFError, OSError) as error:
        raise CommandError(f"{options.labels} is damaged, or no .npy file of numbers: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise CommandError(f"--labels must be a vector of integers, got {array.dtype} {list(array.shape)}")
    labels = torch.from_numpy(array.astype(np.int64))
    if options.classes is None:
        count = int(labels.max()) + 1 if len(labels) else 0
        return labels, [str(number) for number in range(max(count, 2))]
    if options.classes.isascii() and options.classes.isdigit():
        return labels, [str(number) for number in range(int(options.classes))]
    try:
        names = Path(options.classes).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--classes must be a number or a file of names, got {options.classes!r}") from error
    names = [name.strip() for name in names if name.strip()]
    if len(set(names)) < len(names) or answers.SKIP in names:
        raise CommandError(f"{options.classes} must hold distinct names, none of them {answers.SKIP!r}")
    return labels, names


def _posterior(
    options: argparse.Namespace,
    features: "Tensor",  # [L, D]
    labels: "Tensor",  # [L] int64
    class_names: Sequence[str],
) -> "LastLayerLaplace":
    from lapal_ext.posterior import LastLayerLaplace

    precise = features if features.dtype.itemsize >= 4 else features.float()
    if options.head is None:
        return LastLayerLaplace.fit_map(precise, labels, len(class_names), options.prior_precision)
    return LastLayerLaplace.from_linear(
        _head(options.head, len(class_names)), precise, options.prior_precision, standardize=True
    )


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
        raise CommandError(f"--head must have a weight of {n_classes} classes, one row each, got {list(weight.shape)}")
    head: nn.Linear = torch.nn.utils.skip_init(
        torch.nn.Linear, weight.shape[1], n_classes, bias=bias is not None, dtype=weight.dtype
    )
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise CommandError(f"--head must hold weight and bias and nothing else, got {', '.join(tensors)}") from error
    return head


def _choose(
    posterior: "LastLayerLaplace",
    pool: "Tensor",  # [N, D]
    labelled: "Tensor",  # [L, D]
    lines: Sequence[Line],
    class_names: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Absorb what was answered, and put new rows behind those of the label file."""
    import torch

    from lapal_ext.selection import select_batch

    left = len(pool) - len(lines)
    if options.number > left:
        raise CommandError(f"--number must be at most {left}, the rows of the pool that are left, got {options.number}")
    told = [line for line in lines if line.label is not None]
    if told:
        answered = pool[torch.tensor([line.row for line in told])].to(posterior.mean.dtype)
        posterior.update(answered, torch.tensor([line.label for line in told]))
        labelled = torch.cat([labelled, answered])
    result = select_batch(
        posterior,
        pool,
        options.number,
        options.acquisition,
        generator=torch.Generator().manual_seed(options.seed),
        labelled=labelled,
        exclude=torch.tensor([line.row for line in lines], dtype=torch.int64),
        memory=_bytes(options),
    )
    picks = zip(result.indices.tolist(), result.utilities.tolist(), strict=True)
    answers.write(options.out, [*lines, *(Line(row, f"{utility:.6g}") for row, utility in picks)], class_names)
    print(f"Absorbed {len(told)} answers and chose {options.number} rows: fill in their labels in {options.out}.")
    if waiting := sum(line.waits for line in lines):
        print(f"{waiting} rows of the file still waited for theirs.")
