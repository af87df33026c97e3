"""``lapal-ext select``: which rows of a pool to label next, as a label file or one question at a time."""

import argparse
from pathlib import Path

from lapal_ext.cli.arguments import check_outputs, positive_number, require, whole_number
from lapal_ext.cli.errors import CommandError, explained
from lapal_ext.cli.items import add_options
from lapal_ext.cli.select import label_studio_file
from lapal_ext.cli.select.label_file import SUFFIXES

_INPUTS = ("pool", "features", "labels", "head", "classes", "items", "ids", "texts", "label_studio", "label_config")
_PICTURES = (".png", ".svg", ".pdf")
_EXAMPLE = """\
example, from no label at all (the first line makes a pool of 500 rows):
  python -c "import numpy as np; np.save('pool.npy', np.random.rand(500, 16).astype('f4'))"
  lapal-ext select --pool pool.npy --classes 3 --out to_label.csv

The file has the columns row, utility, suggested and label. Fill in labels (numbers or names of
classes, or skip) and run the same command again: it fits the model to the answers and adds
--number new rows, once no row waits for an answer. Without --labels, rows are spread over the pool
until every class of --classes has an answer, or --classes-complete is given. With --interactive
the model gets every answer before the next question, and the file is kept up to date; Ctrl-C keeps
all answers.

Columns that may be added to the file: trust, a number of at least 0 for each label (1 if empty),
and annotator, where a row has a line for each of several people. With a label file for each of them,
  lapal-ext select --pool pool.npy --classes 3 --annotators anna.csv bert.csv --overlap 2
gives everyone other rows, except for two rows that both get.

at the end, keep the model, and let it label all rows:
  lapal-ext select --pool pool.npy --classes 3 --out to_label.csv --number 0 --save m.safetensors
  lapal-ext predict --model m.safetensors --pool pool.npy --out labels.csv

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
        description=(
            "Choose the rows of a pool that are best to label next, with a model of the answers so far.\n"
            "Nothing needs to have a label before the first run."
        ),
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    matrix = ".npy or .safetensors"
    add("--pool", required=True, type=Path, metavar="FILE", help=f"features [N, D], {matrix}, or a folder of parts")
    add("--features", type=Path, metavar="FILE", help=f"features that have labels already, [L, D], {matrix}")
    add("--labels", type=Path, metavar="FILE", help="their labels, [L]: numbers or names in .npy, or lines of a .txt")
    add("--out", type=Path, metavar="FILE.csv", help="the label file, with the answers so far")
    add(
        "--annotators",
        nargs="+",
        type=Path,
        metavar="FILE.csv",
        help="in place of --out, a label file for each of several people, who get different rows",
    )
    add(
        "--overlap",
        type=whole_number(0),
        default=0,
        metavar="K",
        help="with --annotators, how many of the --number rows all of them get who get rows in this run (default: 0)",
    )
    add("--head", type=Path, metavar="FILE", help="trained layer: weight [C, D] and bias [C], .safetensors")
    add(
        "--classes",
        metavar="N|FILE",
        help="number of classes, or a file of names, one per line (default: those of --labels, or of the answers)",
    )
    add("--new-classes", action="store_true", help="a label that --classes or --labels lacks is a further class")
    add("--classes-complete", action="store_true", help="do not wait for answers of classes that have none so far")
    add(
        "--number",
        type=whole_number(0),
        default=10,
        metavar="N",
        help="rows to choose; 0 for --save alone (default: %(default)s)",
    )
    add("--more", action="store_true", help="add rows although others still wait for an answer")
    add(
        "--acquisition",
        default="uherding",
        metavar="NAME",
        help="as in select_batch; without --labels, from when every class has an answer (default: %(default)s)",
    )
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
    label_studio_file.add_options(parser)
    add_options(parser)
    add("--texts", type=Path, metavar="FILE", help="text to show for a row: its line in this file")
    add("--save", type=Path, metavar="FILE", help="file for the model with all answers, for LastLayerLaplace.load")
    add("--picture", type=Path, metavar="FILE.png", help="draw how far the labelling is (needs matplotlib)")
    add("--alone", action="store_true", help="run as a single process, even if torchrun has started several")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from lapal_ext.cli.select.torchrun import started_by_torchrun

    _check_label_files(options)  # before the work starts
    for name, path in (("--save", options.save), ("--picture", options.picture)):
        if path is not None:
            _check_folder(name, path)
    written = "out" if options.annotators is None else "annotators"
    check_outputs(options, (written, "save", "picture"), _INPUTS)
    if options.picture is not None:
        require("select --picture", "demo", ("sklearn", "matplotlib"))
        if options.picture.suffix.lower() not in _PICTURES:
            raise CommandError(f"--picture must be a {' or '.join(_PICTURES)} file, got {options.picture}")
    with explained(), started_by_torchrun(alone=options.alone) as group:
        if not options.interactive:
            from lapal_ext.cli.select.batch import choose

            choose(options, group)
        elif group is None:
            from lapal_ext.cli.select.terminal import interview

            interview(options)
        else:
            raise CommandError("--interactive asks one person: start it without torchrun")


def _check_label_files(options: argparse.Namespace) -> None:
    """Raise CommandError unless ``--out`` or ``--annotators`` say which label files there are."""
    label_studio_file.check_options(options)
    if options.annotators is None:
        if options.out is None:
            raise CommandError("pass --out FILE.csv, or --annotators with a file for each person")
        if options.overlap > 0:
            raise CommandError("--overlap needs --annotators, the files of those who get the same rows")
    elif options.out is not None:
        raise CommandError("--annotators has a label file for each person: leave out --out")
    elif options.interactive:
        raise CommandError("--interactive asks one person: pass the label file of that person as --out")
    elif options.overlap > options.number > 0:
        raise CommandError(f"--overlap must be at most --number, which is {options.number}, got {options.overlap}")
    names: dict[str, Path] = {}
    name = "--out" if options.annotators is None else "--annotators"
    paths: list[Path] = options.annotators or [options.out]
    for path in paths:
        _check_folder(name, path)
        if options.label_studio is None and path.suffix.lower() not in SUFFIXES:
            raise CommandError(
                f"{name} must be a {' or '.join(SUFFIXES)} file, a text that spreadsheets open and save, got {path}: "
                f"type {name} {path.with_suffix('.csv')}"
            )
        other = names.setdefault(path.stem, path)
        if other is not path:
            raise CommandError(
                f"{name} must have files of different names, which tell the annotators apart, got {other} and {path}"
            )


def _check_folder(name: str, path: Path) -> None:
    if path.is_dir():
        raise CommandError(f"{name} must be a file, got the folder {path}")
    if not path.parent.is_dir():
        raise CommandError(f"{name} must lie in an existing folder, got {path}")
