"""``lapal-ext select``: which rows of a pool to label next, as a label file or one question at a time."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lapal_ext.cli.arguments import positive_number, whole_number
from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.select.label_file import SUFFIXES, LabelFile, Line

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

_EXAMPLE = """\
example:
  lapal-ext select --pool pool.npy --features train.npy --labels labels.npy --out to_label.csv

The file has the columns row, utility and label. Fill in labels (numbers or names of classes, or
skip) and run the same command again: it absorbs the answers, keeps the rows without an answer
in the file, and adds --number new rows. With --interactive every answer is absorbed before the
next question, and the file is kept up to date; Ctrl-C keeps all answers.

several processes, on one machine or many, share the pool:
  torchrun --nproc-per-node 4 -m lapal_ext select --pool pool.npy ...
Each process has a part of the rows. With --pool 'part{rank}.npy' each process reads its own file,
and row numbers continue from one file to the next. All processes read the other files, and the
first one writes."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "select",
        help="choose which rows of a pool to label next, or ask for their labels one by one",
        description="Fit a posterior to labelled features, and choose the rows of a pool that are best to label next.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    matrix = ".npy or .safetensors"
    add("--pool", required=True, type=Path, metavar="FILE", help=f"features to choose among, [N, D], {matrix}")
    add("--features", required=True, type=Path, metavar="FILE", help=f"labelled features, [L, D], {matrix}")
    add(
        "--labels",
        required=True,
        type=Path,
        metavar="FILE",
        help="their labels, [L], integers, or names in --classes, .npy",
    )
    add("--out", required=True, type=Path, metavar="FILE.csv", help="the label file; answers in it are absorbed")
    add("--head", type=Path, metavar="FILE", help="trained layer: weight [C, D] and bias [C], .safetensors")
    add(
        "--classes",
        metavar="N|FILE",
        help="number of classes, or a file of names, one per line (default: as many as the labels need)",
    )
    add("--number", type=whole_number(1), default=10, metavar="N", help="rows to choose (default: %(default)s)")
    add("--acquisition", default="uherding", metavar="NAME", help="as in select_batch (default: %(default)s)")
    add(
        "--prior-precision",
        type=positive_number,
        default=10.0,
        metavar="L",
        help="prior precision of the weights (default: 10)",
    )
    add("--seed", type=whole_number(0), default=0, metavar="N", help="seed of acquisitions that draw (default: 0)")
    add("--memory", type=positive_number, metavar="MIB", help="limit for logits or kernel values (default: none)")
    add("--interactive", action="store_true", help="ask for labels on the terminal, one by one")
    add("--texts", type=Path, metavar="FILE", help="text to show for a row: its line in this file")
    add("--save", type=Path, metavar="FILE", help="file for the model with all answers, for LastLayerLaplace.load")
    add("--alone", action="store_true", help="run as a single process, even if torchrun has started several")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from lapal_ext.cli.select.torchrun import started_by_torchrun
    from lapal_ext.errors import NotPSDError, RankError

    for name, path in (("--out", options.out), ("--save", options.save)):  # before the work starts
        if path is not None and not path.parent.is_dir():
            raise CommandError(f"{name} must lie in an existing folder, got {path}")
    if options.out.suffix.lower() not in SUFFIXES:
        raise CommandError(
            f"--out must be a {' or '.join(SUFFIXES)} file, a text that spreadsheets open and save, got {options.out}"
        )
    try:
        with started_by_torchrun(alone=options.alone) as group:
            if not options.interactive:
                _choose(options, group)
            elif group is None:
                _ask(options)
            else:
                raise CommandError("--interactive asks one person: start it without torchrun")
    except FileNotFoundError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot read {error.filename}: {error.strerror}") from error
    except (NotPSDError, RankError, ValueError, TypeError, ImportError) as error:
        raise CommandError(str(error)) from error


def _labelled(options: argparse.Namespace, pool: "Tensor") -> "tuple[LastLayerLaplace, Tensor, list[str]]":
    """The posterior, the features that it was fitted to, and the names of the classes."""
    import torch

    from lapal_ext.cli.select.inputs import make_posterior, read_labels
    from lapal_ext.pool.feature_files import map_file

    features = map_file("--features", options.features).to(torch.promote_types(pool.dtype, torch.float32))
    labels, class_names = read_labels(options)
    if len(labels) != len(features):
        raise CommandError(f"--labels must hold one label for each of {len(features)} features, got {len(labels)}")
    return make_posterior(options, features, labels, class_names), features, class_names


def _ask(options: argparse.Namespace) -> None:
    """Ask for labels on the terminal."""
    from lapal_ext.cli.select.inputs import check_texts
    from lapal_ext.cli.select.terminal import interview
    from lapal_ext.pool.checksum import checksum
    from lapal_ext.pool.feature_files import map_file
    from lapal_ext.selection.sequential_selector import SequentialSelector

    pool = map_file("--pool", options.pool)
    posterior, features, class_names = _labelled(options, pool)
    file = LabelFile(options.out, len(pool), class_names, checksum(pool))
    if options.texts is not None:
        check_texts(options.texts, len(pool))
    selector = SequentialSelector(
        posterior,
        pool,
        options.acquisition,
        generator=_generator(options),
        labelled=features,
        memory=_bytes(options),
    )
    interview(selector, pool, file, options.number, class_names, options.texts)
    if options.save is not None:
        selector.posterior.save(options.save)


def _choose(options: argparse.Namespace, group: "ProcessGroup | None") -> None:
    """Absorb the answers, and append new rows to the label file."""
    import torch

    from lapal_ext.cli.select.inputs import check_texts, texts_of
    from lapal_ext.cli.select.torchrun import map_shard
    from lapal_ext.pool.pool import Pool
    from lapal_ext.pool.sharding import Ranks
    from lapal_ext.selection.select_batch import select_batch

    ranks = Ranks(group)
    with ranks.together():
        shard = map_shard("--pool", options.pool, ranks)
        posterior, labelled, class_names = _labelled(options, shard)
        for buffer in posterior.buffers():  # processors of different kinds give different last digits
            buffer.copy_(ranks.from_first(buffer.clone, buffer))
        pool = Pool(posterior, shard, ranks=ranks)
        file = LabelFile(options.out, pool.size, class_names, pool.checksum())
        if options.texts is not None:
            check_texts(options.texts, pool.size)
        lines, rows = file.lines, torch.tensor([line.row for line in file.lines], dtype=torch.int64, device="cpu")
        number = min(options.number, pool.size - len(lines))
        if number == 0:
            raise CommandError(f"every row of the pool is in {file.path} already")
        features = pool.raw(rows)
        has_label = torch.tensor([line.label is not None for line in lines], dtype=torch.bool, device="cpu")
        if has_label.any():
            posterior.update(
                features[has_label],
                torch.tensor([line.label for line in lines if line.label is not None], device="cpu"),
            )
        answered = posterior.clone()
        for number_of_line, line in enumerate(lines):
            if line.waits:  # absorbed with its predicted label, as within a batch, so that no similar row is chosen
                row = features[number_of_line : number_of_line + 1]
                posterior.update(row, posterior.predict_logits(row).argmax(1))
    result = select_batch(
        posterior,
        shard,
        number,
        options.acquisition,
        generator=_generator(options),
        labelled=torch.cat([labelled, features]),
        exclude=rows,
        memory=_bytes(options),
        group=group,
        progress=sys.stdout.isatty() and importlib.util.find_spec("rich") is not None,
    )
    if ranks.rank > 0:
        return
    picks = result.indices.tolist()
    others: list[dict[str, str]] = [{} for _ in picks]
    if options.texts is not None:
        others = [{"text": text} for text in texts_of(options.texts, picks)]
    chosen = zip(picks, result.utilities.tolist(), others, strict=True)
    file.write([*lines, *(Line(row, f"{utility:.6g}", others=more) for row, utility, more in chosen)])
    if options.save is not None:
        answered.save(options.save)
    print(f"Answers absorbed: {int(has_label.sum())}. Rows chosen: {number}. Fill in their labels in {file.path}.")
    if number < options.number:
        print(f"There are no more rows than these {number}.")
    if waiting := sum(line.waits for line in lines):
        print(f"Rows of the file that still wait for a label: {waiting}.")


def _bytes(options: argparse.Namespace) -> float | None:
    return None if options.memory is None else options.memory * 2**20


def _generator(options: argparse.Namespace) -> "torch.Generator":
    import torch

    return torch.Generator(device="cpu").manual_seed(options.seed)
