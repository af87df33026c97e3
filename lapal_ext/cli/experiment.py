"""``lapal-ext experiment``: run an experiment of arXiv 2210.06112 on real features; it may be interrupted."""

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lapal_ext.cli.arguments import positive_number, prepared, require, whole_number
from lapal_ext.cli.errors import CommandError

if TYPE_CHECKING:
    from lapal_ext.study.configuration import Configuration, Source

_NEEDS = ("sklearn", "matplotlib", "rich", "torchmetrics")
_KINDS = {
    "updating": "absorb new labels into a fitted model, by every rule and by a refit",
    "active-learning": "label batch after batch, by top-b and by sequential strategies",
    "look-ahead": "label batch after batch, by trying candidate batches before they are labelled",
}
_FOLDER_OF_DATA = "LAPAL_EXT_DATA"
_RECIPES = ("debian_sections", "fashion_mnist", "wordnet_supersenses")  # written out, so that help imports nothing
_ACQUISITIONS, _SUBSET, _EVALUATION = 20, 1000, 1000
_NEW_LABELS = (1, 2, 5, 10, 20, 50, 100)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand, which has a subcommand for each experiment."""
    example = "example:\n  lapal-ext experiment active-learning --data digits --out results --seeds 10 --jobs 2"
    parser = subparsers.add_parser(
        "experiment",
        help="compare strategies on real features, over many seeds in parallel",
        description=(
            "Run an experiment and write results.csv, timings.csv and configuration.json.\n"
            "The same command continues a run that was interrupted."
        ),
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=lambda _: parser.error("name an experiment: " + ", ".join(_KINDS)))
    kinds = parser.add_subparsers(title="experiments", metavar="experiment")
    for kind, title in _KINDS.items():
        one = kinds.add_parser(
            kind,
            help=title,
            description=f"{title[0].upper()}{title[1:]}.",
            epilog=f"example:\n  lapal-ext experiment {kind} --data digits --out results --seeds 2",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_kind(one, kind)


def _add_kind(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.set_defaults(run=_run, kind=kind)
    add = parser.add_argument
    add(
        "--data",
        required=True,
        metavar="NAME|FILE.npz",
        help=f"digits, a file of features, the name of a file in the folder ${_FOLDER_OF_DATA}, or a set that is made "
        f"from packages at its first use: {', '.join(_RECIPES)}",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder for the results, made if it is missing")
    add("--seeds", type=whole_number(1), default=10, metavar="N", help="repetitions (default: %(default)s)")
    add("--jobs", type=whole_number(1), default=1, metavar="N", help="processes, one thread each (default: 1)")
    suffix = "" if kind == "updating" else "; with the suffix _updated a strategy never refits its model"
    add(
        "--arms",
        nargs="+",
        metavar="ARM",
        help=f"strategies to compare (default: all of this experiment; an unknown name prints all names{suffix})",
    )
    add(
        "--prior-precisions",
        nargs="+",
        type=positive_number,
        default=[10.0],
        metavar="L",
        help="prior precisions to compare, each used in all fits (default: 10)",
    )
    add("--initial", type=whole_number(1), metavar="N", help="labels at the start (default: one batch; updating: 50)")
    add(
        "--evaluation-rows",
        type=whole_number(1),
        metavar="N",
        help=f"training rows on which look-ahead computes its loss (default: {_EVALUATION}; digits: 300)",
    )
    add("--feature-factor", type=positive_number, default=1.0, metavar="F", help="multiplies the features (default: 1)")
    if kind == "updating":
        add(
            "--new-labels",
            nargs="+",
            type=whole_number(1),
            default=list(_NEW_LABELS),
            metavar="N",
            help="numbers of new labels to absorb (default: %(default)s)",
        )
    else:
        add(
            "--batch-size",
            type=whole_number(1),
            metavar="N",
            help="rows per batch (default: from the paper or the number of classes)",
        )
        add(
            "--acquisitions",
            type=whole_number(1),
            metavar="N",
            help=f"number of batches (default: {_ACQUISITIONS}, fewer if the pool is small)",
        )
        add(
            "--subset",
            type=whole_number(1),
            default=_SUBSET,
            metavar="N",
            help="candidates of a query, the same for all arms of a seed (default: %(default)s)",
        )
        add(
            "--refit-every",
            type=whole_number(0),
            default=1,
            metavar="K",
            help="refit the model after every K-th batch, and absorb each other batch by a closed-form update; "
            "0: never refit (default: %(default)s)",
        )


def _run(options: argparse.Namespace) -> None:
    require("experiment", "experiment", _NEEDS)
    from lapal_ext.errors import NotPSDError
    from lapal_ext.selection.progress import progress_bar
    from lapal_ext.study.experiment import RESULTS, run_experiment, units

    source = _source(options.data)
    configuration = _configuration(options, source)
    folder = prepared(options.out)
    try:
        with progress_bar("experiment", len(units(configuration)), shown=sys.stderr.isatty()) as advance:
            run_experiment(folder, configuration, source, options.jobs, advance)
    except (NotPSDError, ValueError) as error:  # also of fits, which may refuse a prior precision
        raise CommandError(str(error)) from error
    except BrokenProcessPool as error:
        raise CommandError("a process died; run the same command again to continue the experiment") from error
    except OSError as error:
        raise CommandError(f"cannot write to {folder}: {error.strerror}") from error
    print(f"Wrote {folder / RESULTS}. Tables and figures: lapal-ext report {folder}")


def _source(data: str) -> "Source":
    from lapal_ext.study.configuration import DIGITS, Source

    if data == DIGITS:
        return Source(None)
    kept = os.environ.get(_FOLDER_OF_DATA)
    path = Path(data)
    if path.suffix != ".npz" and kept is not None:
        path = Path(kept) / f"{data}.npz"
    if not path.is_file():
        path = _build(data, path)
    return Source(str(path.resolve()))


def _build(data: str, path: Path) -> Path:
    """Return the file of a recipe, which is made at its first use. There is no file at ``path``."""
    from lapal_ext.errors import StorageError
    from lapal_ext.study import recipes

    if data not in recipes.RECIPES:
        raise CommandError(
            f"--data must be digits, an .npz file, the name of a file in the folder ${_FOLDER_OF_DATA}, "
            f"or a recipe ({', '.join(recipes.RECIPES)}), got {data!r}, and there is no file {path}"
        )
    try:
        return recipes.build(data, lambda line: print(line, file=sys.stderr), progress=sys.stderr.isatty())
    except (recipes.RecipeError, StorageError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot make {data} in {recipes.folder()}: {error.strerror or error}") from error


def _configuration(options: argparse.Namespace, source: "Source") -> "Configuration":
    from lapal_ext.errors import StorageError
    from lapal_ext.study.configuration import DIGITS, DIGITS_EVALUATION, Configuration, default_batch
    from lapal_ext.study.strategies import ACTIVE_STRATEGIES, LOOK_AHEAD_STRATEGIES, UPDATING_STRATEGIES

    arms = {
        "updating": UPDATING_STRATEGIES,
        "active-learning": ACTIVE_STRATEGIES,
        "look-ahead": LOOK_AHEAD_STRATEGIES,
    }[options.kind]
    try:
        rows, num_classes = source.shape()
        sha256 = source.sha256()
    except StorageError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"cannot read {source.path}: {error.strerror}") from error
    digits = source.name == DIGITS
    kept = options.evaluation_rows or (DIGITS_EVALUATION if digits else min(_EVALUATION, max(1, rows // 5)))
    pool_rows = rows if digits else rows - kept
    if options.kind == "updating":
        initial = options.initial or min(50, pool_rows // 2)
        specific: dict[str, Any] = {"new_labels": tuple(sorted(set(options.new_labels)))}
    else:
        batch = options.batch_size or default_batch(source.name, num_classes)
        initial = options.initial or batch
        most = max(1, (pool_rows - initial) // batch)
        specific = {
            "batch_size": batch,
            "acquisitions": options.acquisitions or min(_ACQUISITIONS, most),
            "subset": options.subset,
            "refit_every": options.refit_every,
        }
    try:
        configuration = Configuration(
            experiment=options.kind.replace("-", "_"),
            data=source.name,
            data_sha256=sha256,
            strategies=tuple(dict.fromkeys(options.arms or arms)),
            seeds=options.seeds,
            prior_precisions=tuple(dict.fromkeys(options.prior_precisions)),
            initial_labels=initial,
            evaluation_rows=kept,
            feature_factor=options.feature_factor,
            **specific,
        )
        configuration.check_rows(rows)
    except ValueError as error:
        raise CommandError(str(error)) from error
    return configuration
