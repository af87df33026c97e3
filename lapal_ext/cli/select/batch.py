"""``lapal-ext select`` with a file: fits the model to the answers in it, and adds the rows to label next."""

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lapal_ext.cli.items import Items, check_counts, read_items
from lapal_ext.cli.saved_model import save_model
from lapal_ext.cli.select.answers import Line, labelled, labels_of
from lapal_ext.cli.select.classes import Classes, closest
from lapal_ext.cli.select.display import safe, wrapped
from lapal_ext.cli.select.label_file import RESERVED, LabelFile
from lapal_ext.cli.select.label_studio_file import LabelStudioFile
from lapal_ext.cli.select.pool_record import PoolRecord
from lapal_ext.cli.select.start import LEAST_CLASSES, Start
from lapal_ext.cli.select.summary import Summary, summarise, texts
from lapal_ext.cli.select.torchrun import map_shard
from lapal_ext.pool.checksum import checksum, row_digests
from lapal_ext.pool.sharding import Ranks, Shard
from lapal_ext.posterior.calibration import Calibration
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.selection.select_batch import select_batch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from lapal_ext.cli.select.picture import PoolMap

_NAMED = 5  # ids that a message lists
_SAME = 0.8  # similarity from which two classes may be one


def open_label_file(
    options: argparse.Namespace,
    items: Items,
    pool: "Tensor",  # [n, D], the rows in this process
    shard: Shard,
    ranks: Ranks,
    classes: Classes,
) -> tuple[LabelFile, PoolRecord]:
    """The label file and the record of its pool; all processes call this."""
    record = _open_record(options, items, pool, shard, ranks)
    return LabelFile(options.out, shard.total, classes, record, items.ids), record


def _open_record(
    options: argparse.Namespace,
    items: Items,
    pool: "Tensor",  # [n, D]
    shard: Shard,
    ranks: Ranks,
) -> PoolRecord:
    check_counts(options, items, shard.total)

    def digests(rows: list[int]) -> list[int]:
        numbers: list[int] = row_digests(pool, rows, shard, ranks).tolist()
        return numbers

    return PoolRecord(options.out, checksum(pool, shard, ranks), None if items.ids is None else digests)


def choose(options: argparse.Namespace, group: "ProcessGroup | None") -> None:
    """Read the answers back, save the model that is fitted to all of them, and append rows to the label file."""
    ranks = Ranks(group)
    with ranks.together():
        items = read_items(options, RESERVED)
        rows_here, shard = map_shard("--pool", options.pool, ranks)
        start = Start(options, rows_here, shard, ranks)
        file: LabelFile | LabelStudioFile
        if options.label_studio is None:
            file, record = open_label_file(options, items, rows_here, shard, ranks, start.classes)
        else:
            record = _open_record(options, items, rows_here, shard, ranks)
            file = LabelStudioFile(options, shard.total, start.classes, record, items)
        lines = file.lines
        answers = start.answers(lines)
        taught = start.is_taught(lines)
        answered = start.model(answers)
        model = answered.clone()
        waiting = [line.row for line in lines if line.waits]
        if taught:  # each counts with its predicted label, as within a batch, so that no similar row is chosen
            for row in start.features_of(waiting)[:, None]:
                model.update(row, model.predict_logits(row).argmax(1))
        calibration = start.calibration(answers)
        picked = list(dict.fromkeys(line.row for line in lines))  # several people may have answered a row
        left = shard.total - len(picked)
        number = min(options.number, left) if options.more or not waiting else 0
        covered = start.covered(picked)
    added: list[Line] = []
    logits: Tensor | None = None
    if number > 0:
        result = select_batch(
            model,
            rows_here,
            number,
            start.acquisition(lines),
            generator=seeded(options),
            labelled=covered,
            exclude=picked,
            memory=limit_of(options),
            group=group,
            progress=sys.stdout.isatty() and importlib.util.find_spec("rich") is not None,
        )
        with ranks.together():
            picks = result.indices.tolist()
            names = [""] * number if items.ids is None else [items.ids.ids[row] for row in picks]
            record.note(dict(zip(names, picks, strict=True)))
            guesses = [""] * number
            if taught:
                logits = answered.predict_logits(start.features_of(picks))
                known = start.classes.names  # a model has two classes or more, though one alone may have a name
                guesses = [known[guess] if guess < len(known) else "" for guess in logits.argmax(1).tolist()]
        for row, utility, name, guess in zip(picks, result.utilities.tolist(), names, guesses, strict=True):
            added.append(Line(row, f"{utility:.6g}", others=items.cells(row), name=name, suggested=guess))
    everything = [*lines, *added]
    summary = summarise(everything, start, answered, calibration, rows_here, group)
    pool_map = map_pool(options, everything, start, answered, calibration, ranks)
    if ranks.rank > 0:
        return
    if isinstance(file, LabelFile):
        file.write(everything)
    elif logits is None or len(start.classes) < LEAST_CLASSES:
        file.write(everything, None)
    else:
        temperature = 1.0 if calibration is None else calibration.temperature
        file.write(everything, (logits / temperature).softmax(1))
    _report(options, file, start, len(lines), number)
    print_summary(options, summary, start.classes, pool_map)
    save(options, start, answered, calibration)


def map_pool(
    options: argparse.Namespace,
    lines: Sequence[Line],
    start: Start,
    model: LastLayerLaplace,
    calibration: Calibration | None,
    ranks: Ranks,
) -> "PoolMap | None":
    """The map of ``--picture``, or None without it; all processes call this."""
    if options.picture is None:
        return None
    from lapal_ext.cli.select.picture import PoolMap

    with ranks.together():
        temperature = 1.0 if calibration is None else calibration.temperature
        return PoolMap(lines, start, model, temperature, taught=start.is_taught(lines))


def print_summary(options: argparse.Namespace, summary: Summary, classes: Classes, pool_map: "PoolMap | None") -> None:
    """Print how far the labelling is, and write ``--picture``."""
    for text in texts(summary, classes):
        print("\n".join(wrapped(safe(text))))
    if pool_map is not None:
        from lapal_ext.cli.select.picture import draw

        draw(options.picture, summary, classes, pool_map)
        print(f"The picture is in {options.picture}.")


def save(options: argparse.Namespace, start: Start, model: LastLayerLaplace, calibration: Calibration | None) -> None:
    """Write the model that is fitted to all answers, and its temperature, to ``--save``."""
    if options.save is None:
        return
    if len(start.classes) < LEAST_CLASSES:
        print(f"{options.save} is not written: a model needs answers of at least two classes.")
        return
    save_model(model, None if calibration is None else calibration.temperature, options.save)
    print(f"The model with all answers is in {options.save}.")


def conclude(options: argparse.Namespace, lines: Sequence[Line], start: Start, pool: "Tensor", ranks: Ranks) -> None:
    """What one process does at the end with all answers: print how far the labelling is, draw it, save the model."""
    if not labels_of(lines) and options.save is None and options.picture is None:
        return
    answers = start.answers(lines)
    model, calibration = start.model(answers), start.calibration(answers)
    summary = summarise(lines, start, model, calibration, pool)
    print_summary(options, summary, start.classes, map_pool(options, lines, start, model, calibration, ranks))
    save(options, start, model, calibration)


def tell_changes(file: LabelFile | LabelStudioFile, classes: Classes, *, grows: bool) -> None:
    """Print which rows of the label file are gone from the pool, and which classes may be slips."""
    if file.gone:
        answers = len(labels_of(file.gone))
        names = ", ".join(line.name for line in file.gone[:_NAMED]) + (", …" if len(file.gone) > _NAMED else "")
        print(
            f"Rows of {file.path} that are gone from the pool: {len(file.gone)} ({names}). They stay in the file; "
            f"the model does not get their labels, of which there are {answers}."
        )
    if not grows or classes.are_numbers:
        return
    counts = Counter(classes.names[label] for label in labels_of(file.lines))
    for name, count in counts.items():
        other = closest(name, [known for known in counts if known != name], _SAME) if count == 1 else None
        if other is not None and counts[other] > count:
            print(f"Is {name!r} (one label) another class than {other!r} ({counts[other]})? If not, correct it.")


def seeded(options: argparse.Namespace) -> torch.Generator:
    """The generator of ``--seed``."""
    return torch.Generator(device="cpu").manual_seed(options.seed)


def limit_of(options: argparse.Namespace) -> float | None:
    """The bytes of ``--memory``."""
    return None if options.memory is None else float(options.memory) * 2**20


def _report(
    options: argparse.Namespace, file: LabelFile | LabelStudioFile, start: Start, before: int, number: int
) -> None:
    tell_changes(file, start.classes, grows=start.classes.grows)
    labels = labels_of(file.lines)
    waiting = sum(line.waits for line in file.lines[:before])
    left = file.pool_rows - len({line.row for line in file.lines})
    answers = f"Answers: {len(labels)}."
    if number > 0:
        print(f"{answers} Rows chosen: {number}. {file.to_do}")
        if left == 0:
            print(f"There are no more rows than these {number}.")
        if waiting:
            print(f"Rows of the file that still wait for a label: {waiting}.")
    elif waiting:
        print(f"{answers} Rows of {file.path} that still wait for a label: {waiting}.")
        if options.number > 0 and left > 0:
            print("No rows were added to them. To get more all the same, pass --more.")
    elif left == 0:
        skipped = file.pool_rows - len({row for row, _ in labelled(file.lines)})
        print(f"{answers} Every row of the pool has an answer{f', {skipped} of them skip' if skipped else ''}.")
    else:
        print(answers)
    if left > 0 and (text := start.progress(file.lines)):
        print(text)
    if left == 0 and not waiting and number == 0 and options.save is None:
        print("To keep the model, run the command again with --save model.safetensors.")
