"""``lapal-ext predict``: the class of every row of a pool, by a model that ``lapal-ext select --save`` has written."""

import argparse
import csv
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lapal_ext.cli.arguments import check_outputs
from lapal_ext.cli.errors import CommandError, explained
from lapal_ext.cli.items import ID, add_options, check_counts, read_items

if TYPE_CHECKING:
    from torch import Tensor

    from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace

_COLUMNS = ("row", "class", "probability", "second_class")
_SAMPLED, _JUDGED = 1000, 10  # rows that say whether a pool is like that of the model; fewer than 10 do not
_LIKE = (0.35, 2.5)  # mean square of rows; in experiments 0.5 to 2.0 for one class, ten rows or other texts alone
_EXAMPLE = """\
example (the first two lines make a model, the third one uses it):
  python -c "import numpy as np; np.save('x.npy', np.random.rand(500, 16).astype('f4'))"
  python -c "import numpy as np, lapal_ext as l; x = np.load('x.npy'); l.LastLayerLaplace.fit_map(x, (x[:, 0] > .5) * 1, 2).save('m')"
  lapal-ext predict --model m --pool x.npy --out labels.csv"""  # noqa: E501 lines that are copied


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "predict",
        help="write the class of every row of a pool, by a saved model",
        description=(
            "Write a CSV file with the likeliest class of every row, its probability and the second\n"
            "likeliest class. A pool in one file is read a tile at a time, and may be larger than memory;\n"
            "the parts in a folder are copied into memory."
        ),
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="FILE", help="what --save of lapal-ext select has written")
    add("--pool", required=True, type=Path, metavar="FILE", help="features [N, D], or a folder of parts")
    add("--out", required=True, type=Path, metavar="FILE.csv", help="the file to write, replaced as a whole")
    add_options(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from lapal_ext.atomic_file import replace_file
    from lapal_ext.cli.saved_model import load_model
    from lapal_ext.pool.feature_files import map_file
    from lapal_ext.pool.top_classes import top_classes
    from lapal_ext.selection.progress import progress_bar

    if options.out.suffix.lower() != ".csv":
        raise CommandError(
            f"--out must be a .csv file, got {options.out}: type --out {options.out.with_suffix('.csv')}"
        )
    if not options.out.parent.is_dir():
        raise CommandError(f"--out must lie in an existing folder, got {options.out}")
    check_outputs(options, ("", "out"), ("model", "pool", "items", "ids"))
    with explained():
        if not options.model.is_file():
            raise CommandError(f"--model must be an existing file, got {options.model}")
        items = read_items(options, _COLUMNS)
        model, temperature = load_model(options.model)
        pool = map_file("--pool", options.pool)
        check_counts(options, items, len(pool))
        warning = _unlike(model, pool)
        names = model.class_names or tuple(map(str, range(model.num_classes)))
        shown = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None

        def fill(scratch: Path) -> None:
            with scratch.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                ids = [] if items.ids is None else [ID]
                writer.writerow([_COLUMNS[0], *ids, *_COLUMNS[1:], *items.columns])
                for rows, classes, probabilities in top_classes(model, pool, temperature=temperature or 1.0):
                    for row, (first, second), share in zip(
                        range(rows.start, rows.stop), classes.tolist(), probabilities[:, 0].tolist(), strict=True
                    ):
                        name = [] if items.ids is None else [items.ids.ids[row]]
                        writer.writerow(
                            [row, *name, names[first], f"{share:.4f}", names[second], *items.cells(row).values()]
                        )
                    advance(rows.stop - rows.start)

        with progress_bar("predicting", len(pool), shown=shown) as advance:
            replace_file(options.out, fill)
    print(f"Classes of {len(pool)} rows are in {options.out}.")
    if warning:
        print(f"warning: {warning}", file=sys.stderr)
    if temperature is None:
        print("Their probabilities are not calibrated: lapal-ext select --save does that, without --head.")


def _unlike(
    model: "LastLayerLaplace",
    pool: "Tensor",  # [N, D]
) -> str:
    """A sentence if the rows are much farther from the centre of the model, or closer to it, than those it was made of.

    Their standardised features then have a mean square that is far from one. Few rows, and models that do not
    standardise, tell nothing.
    """
    if len(pool) < _JUDGED or pool.shape[1] != model.num_features or model.standardization.kind is False:
        return ""
    rows = pool[:: -(-len(pool) // _SAMPLED)].to(model.mean.dtype)
    square = float(model.standardization.standardized(rows)[:, : model.num_features].double().square().mean())
    low, high = _LIKE
    if low <= square <= high:
        return ""
    return (
        f"the features of the pool are {square**0.5:.2g} times as far from the centre of the model as those that it "
        "was made for: if another encoder made them, the classes mean nothing"
    )
