"""``lapal-ext select`` with a file: absorbs the answers in the label file, and adds the rows to label next."""

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from lapal_ext.cli.items import Items, read_items
from lapal_ext.cli.saved_model import save_model
from lapal_ext.cli.select.classes import Classes, closest
from lapal_ext.cli.select.label_file import RESERVED, LabelFile, Line
from lapal_ext.cli.select.pool_record import PoolRecord
from lapal_ext.cli.select.start import Start
from lapal_ext.cli.select.torchrun import map_shard
from lapal_ext.pool.checksum import checksum, row_digests
from lapal_ext.pool.pool import Pool
from lapal_ext.pool.sharding import Ranks, Shard
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.selection.select_batch import select_batch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

_NAMED = 5  # ids that a message lists
_SAME = 0.8  # similarity from which two classes may be one


def open_label_file(
    options: argparse.Namespace,
    pool: "Tensor",  # [n, D], the rows in this process
    shard: Shard,
    ranks: Ranks,
    classes: Classes,
) -> tuple[LabelFile, PoolRecord, Items]:
    """The label file, the record of its pool and the items of the rows; all processes call this."""
    items = read_items(options, shard.total, RESERVED)

    def digests(rows: list[int]) -> list[int]:
        numbers: list[int] = row_digests(pool, rows, shard, ranks).tolist()
        return numbers

    record = PoolRecord(options.out, checksum(pool, shard, ranks), None if items.ids is None else digests)
    return LabelFile(options.out, shard.total, classes, record, items.ids), record, items


def choose(options: argparse.Namespace, group: "ProcessGroup | None") -> None:
    """Absorb the answers, save the model, and append rows to the label file."""
    ranks = Ranks(group)
    with ranks.together():
        rows_here, shard = map_shard("--pool", options.pool, ranks)
        start = Start(options, rows_here, shard)
        file, record, items = open_label_file(options, rows_here, shard, ranks, start.classes)
        lines = file.lines
        model = start.model()
        _equalize(model, ranks)
        pool = Pool(model, rows_here, ranks=ranks)
        rows = torch.tensor([line.row for line in lines], dtype=torch.int64, device="cpu")
        features = pool.raw(rows)
        labels = [line.label for line in lines if line.label is not None]
        model = start.with_answers(model, features[_places(lines, waits=False)], labels)
        _equalize(model, ranks)
        answered = model.clone()
        waiting = _places(lines, waits=True)
        for place in waiting:  # absorbed with its predicted label, as within a batch, so that no similar row is chosen
            if not start.without_labels or labels:
                row = features[place : place + 1]
                model.update(row, model.predict_logits(row).argmax(1))
        left = shard.total - len(lines)
        number = min(options.number, left) if options.more or not waiting else 0
    added: list[Line] = []
    if number > 0:
        result = select_batch(
            model,
            rows_here,
            number,
            start.acquisition(labels),
            generator=seeded(options),
            labelled=torch.cat([start.features, features]),
            exclude=rows,
            memory=limit_of(options),
            group=group,
            progress=sys.stdout.isatty() and importlib.util.find_spec("rich") is not None,
        )
        with ranks.together():
            picks = result.indices.tolist()
            names = [""] * number if items.ids is None else [items.ids.ids[row] for row in picks]
            record.note(dict(zip(names, picks, strict=True)))
            guesses = [""] * number
            if not start.without_labels or labels:
                classes = answered.predict_logits(pool.raw(result.indices)).argmax(1)
                known = start.classes.names  # a model has two classes or more, though one alone may have a name
                guesses = [known[guess] if guess < len(known) else "" for guess in classes.tolist()]
        for row, utility, name, guess in zip(picks, result.utilities.tolist(), names, guesses, strict=True):
            added.append(Line(row, f"{utility:.6g}", others=items.cells(row), name=name, suggested=guess))
    if ranks.rank > 0:
        return
    file.write([*lines, *added])
    _report(options, file, start, len(lines), number)
    given = features[_places(lines, waits=False)]
    save(options, answered, start.classes, lambda: start.temperature(given, labels))


def save(
    options: argparse.Namespace, model: LastLayerLaplace, classes: Classes, temperature: Callable[[], float]
) -> None:
    """Write the model and its temperature to ``--save``."""
    if options.save is None:
        return
    if len(classes) < model.num_classes:
        print(f"{options.save} is not written: a model needs answers of at least two classes.")
        return
    save_model(model, temperature(), options.save)
    print(f"The model with all answers is in {options.save}.")


def tell_changes(file: LabelFile, classes: Classes, *, grows: bool) -> None:
    """Print which rows of the label file are gone from the pool, and which classes may be slips."""
    if file.gone:
        answers = sum(line.label is not None for line in file.gone)
        names = ", ".join(line.name for line in file.gone[:_NAMED]) + (", …" if len(file.gone) > _NAMED else "")
        print(
            f"Rows of {file.path} that are gone from the pool: {len(file.gone)} ({names}). They stay in the file; "
            f"the model does not get their labels, of which there are {answers}."
        )
    if not grows or classes.are_numbers:
        return
    counts = Counter(classes.names[line.label] for line in file.lines if line.label is not None)
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


def _places(lines: Sequence[Line], *, waits: bool) -> list[int]:
    """The lines that wait for an answer, or those that have a label."""
    return [place for place, line in enumerate(lines) if (line.waits if waits else line.label is not None)]


def _equalize(model: LastLayerLaplace, ranks: Ranks) -> None:
    """Give all ranks the numbers of the first: processors of different kinds give different last digits."""
    for buffer in model.buffers():
        buffer.copy_(ranks.from_first(buffer.clone, buffer))


def _report(options: argparse.Namespace, file: LabelFile, start: Start, before: int, number: int) -> None:
    tell_changes(file, start.classes, grows=start.classes.grows)
    labels = [line.label for line in file.lines if line.label is not None]
    waiting = sum(line.waits for line in file.lines[:before])
    left = file.pool_rows - len(file.lines)
    absorbed = f"Answers absorbed: {len(labels)}."
    if number > 0:
        print(f"{absorbed} Rows chosen: {number}. Fill in their labels in {file.path}.")
        if left == 0:
            print(f"There are no more rows than these {number}.")
        if waiting:
            print(f"Rows of the file that still wait for a label: {waiting}.")
    elif waiting:
        print(f"{absorbed} Rows of {file.path} that still wait for a label: {waiting}.")
        if options.number > 0 and left > 0:
            print("No rows were added to them. To get more all the same, pass --more.")
    elif left == 0:
        skipped = len(file.lines) - len(labels)
        print(f"{absorbed} Every row of the pool has an answer{f', {skipped} of them skip' if skipped else ''}.")
    else:
        print(absorbed)
    if left > 0 and (text := start.progress(labels)):
        print(text)
    if left == 0 and not waiting and number == 0 and options.save is None:
        print("To keep the model, run the command again with --save model.safetensors.")
