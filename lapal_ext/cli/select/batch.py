"""``lapal-ext select`` with label files: fits the model to the answers in them, and adds the rows to label next."""

import argparse
import importlib.util
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.items import Items, check_counts, read_items
from lapal_ext.cli.saved_model import save_model
from lapal_ext.cli.select.annotators import Handout, disagreements, interleaved, report
from lapal_ext.cli.select.answers import AnswerFile, Line, labels_of, rows_of
from lapal_ext.cli.select.classes import Classes
from lapal_ext.cli.select.display import safe, wrapped
from lapal_ext.cli.select.label_file import ANNOTATOR, RESERVED, LabelFile
from lapal_ext.cli.select.label_studio_file import LabelStudioFile
from lapal_ext.cli.select.pool_record import PoolRecord
from lapal_ext.cli.select.start import LEAST_CLASSES, Start
from lapal_ext.cli.select.summary import Summary, summarise, texts
from lapal_ext.cli.select.torchrun import map_shard
from lapal_ext.pool.checksum import checksum, row_digests
from lapal_ext.pool.sharding import Ranks, Shard
from lapal_ext.posterior.calibration import Calibration
from lapal_ext.posterior.class_names import closest
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.selection.select_batch import select_batch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from lapal_ext.cli.select.picture import PoolMap

_NAMED = 5  # ids that a message lists
_SEEDS = 2**64  # that torch knows
_SAME = 0.8  # similarity from which two classes may be one


def open_label_files(
    options: argparse.Namespace,
    items: Items,
    pool: "Tensor",  # [n, D], the rows in this process
    shard: Shard,
    ranks: Ranks,
    classes: Classes,
) -> list[tuple[AnswerFile, PoolRecord]]:
    """The files of ``--out``, ``--annotators`` or ``--label-studio``, and the records of their pool.

    All processes call this.
    """
    check_counts(options, items, shard.total)

    def digests(rows: list[int]) -> list[int]:
        numbers: list[int] = row_digests(pool, rows, shard, ranks).tolist()
        return numbers

    content = checksum(pool, shard, ranks)
    opened: list[tuple[AnswerFile, PoolRecord]] = []
    for path in options.annotators or [options.out]:
        record = PoolRecord(path, content, None if items.ids is None else digests)
        if options.label_studio is not None:
            opened.append((LabelStudioFile(options, shard.total, classes, record, items), record))
        else:
            annotator = path.stem if options.annotators else None
            opened.append((LabelFile(path, shard.total, classes, record, items.ids, annotator), record))
    return opened


def choose(options: argparse.Namespace, group: "ProcessGroup | None") -> None:
    """Read the answers back, save the model that is fitted to all of them, and append rows to the label files."""
    ranks = Ranks(group)
    with ranks.together():
        generator = seeded(options)
        items = read_items(options, RESERVED)
        rows_here, shard = map_shard("--pool", options.pool, ranks)
        start = Start(options, rows_here, shard, ranks)
        opened = open_label_files(options, items, rows_here, shard, ranks, start.classes)
        files = [file for file, _ in opened]
        lines = [line for file in files for line in file.lines]
        answers = start.answers(lines)
        taught = start.is_taught(lines)
        answered = start.model(answers)
        model = answered.clone()
        known = {line.row for line in lines if line.counts}
        waiting = [row for row in rows_of(line for line in lines if line.waits) if row not in known]
        if taught:  # each counts with its predicted label, as within a batch, so that no similar row is chosen
            for row in start.features_of(waiting)[:, None]:
                model.update(row, model.predict_logits(row).argmax(1))
        calibration = start.calibration(answers)
        picked = rows_of(lines)
        handout = Handout(files, options.number, options.overlap, shard.total - len(picked), more=options.more)
        number = handout.total
        covered = start.covered(picked)
    new: list[Line] = []
    if number > 0:
        result = select_batch(
            model,
            rows_here,
            number,
            start.acquisition(lines),
            generator=generator,
            labelled=covered,
            exclude=picked,
            memory=limit_of(options),
            group=group,
            progress=sys.stdout.isatty() and importlib.util.find_spec("rich") is not None,
        )
        with ranks.together():
            picks = result.indices.tolist()
            names = [""] * number if items.ids is None else [items.ids.ids[row] for row in picks]
            guesses = [""] * number
            shares: list[tuple[float, ...]] = [()] * number
            classes = start.classes.names
            if taught:
                logits = answered.predict_logits(start.features_of(picks))
                # A model has two classes or more, though one alone may have a name.
                guesses = [classes[guess] if guess < len(classes) else "" for guess in logits.argmax(1).tolist()]
                if len(classes) >= LEAST_CLASSES:
                    temperature = 1.0 if calibration is None else calibration.temperature
                    shares = [tuple(row) for row in (logits / temperature).softmax(1).tolist()]
        utilities = [f"{utility:.6g}" for utility in result.utilities.tolist()]
        for row, utility, name, guess, share in zip(picks, utilities, names, guesses, shares, strict=True):
            others = items.cells(row)
            new.append(Line(row, utility, others=others, name=name, suggested=guess, probabilities=share))
    added = handout.lines(new, items.cells)
    with ranks.together():
        for (_, record), more in zip(opened, added, strict=True):
            record.note({line.name: line.row for line in more})
    everything = interleaved([[*file.lines, *more] for file, more in zip(files, added, strict=True)])
    summary = summarise(everything, start, answered, calibration, rows_here, group)
    pool_map = map_pool(options, everything, start, answered, calibration, ranks)
    if ranks.rank > 0:
        return
    for file in files:  # before any of them is written
        file.check_unchanged()
    for file, more in zip(files, added, strict=True):
        file.write([*file.lines, *more])
    saved = save(options, everything, start, answered, calibration)  # before a closed pipe can end the command
    _report(options, files, added, start)
    print_summary(options, summary, start.classes, pool_map)
    print(saved, end="")


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
    """Write ``--picture``, and print how far the labelling is."""
    if pool_map is not None:  # before a closed pipe can end the command
        from lapal_ext.cli.select.picture import draw

        draw(options.picture, summary, classes, pool_map)
    for text in texts(summary, classes):
        print("\n".join(wrapped(safe(text))))
    if pool_map is not None:
        print(f"The picture is in {options.picture}.")


def save(
    options: argparse.Namespace,
    lines: Sequence[Line],
    start: Start,
    model: LastLayerLaplace,
    calibration: Calibration | None,
) -> str:
    """Write the model that is fitted to all answers, and its temperature, to ``--save``, and return what to print."""
    if options.save is None:
        return ""
    if len(start.classes) < LEAST_CLASSES or not start.is_taught(lines):
        older = f" The older model in {options.save} stays." if options.save.exists() else ""
        return f"{options.save} is not written: a model needs answers, and at least two classes.{older}\n"
    save_model(model, None if calibration is None else calibration.temperature, options.save)
    return f"The model with all answers is in {options.save}.\n"


def conclude(options: argparse.Namespace, lines: Sequence[Line], start: Start, pool: "Tensor", ranks: Ranks) -> None:
    """What one process does at the end with all answers: print how far the labelling is, draw it, save the model."""
    if not labels_of(lines) and options.save is None and options.picture is None:
        return
    answers = start.answers(lines)
    model, calibration = start.model(answers), start.calibration(answers)
    summary = summarise(lines, start, model, calibration, pool)
    saved = save(options, lines, start, model, calibration)
    print_summary(options, summary, start.classes, map_pool(options, lines, start, model, calibration, ranks))
    print(saved, end="")


def tell_changes(files: Sequence[AnswerFile], classes: Classes, *, grows: bool) -> None:
    """Print what of label files does not count, which of their rows are gone, and which classes may be slips."""
    for file in files:
        named = {line.others.get(ANNOTATOR, "").strip() for line in (*file.lines, *file.gone)} - {"", file.annotator}
        if file.annotator is not None and named:
            names = ", ".join(sorted(map(safe, named))[:_NAMED]) + (", …" if len(named) > _NAMED else "")
            print(
                f"The column annotator of {file.path} ({names}) does not count: with --annotators, all answers in a "
                f"file are those of {file.annotator}."
            )
        if not file.gone:
            continue
        answers = len(labels_of(file.gone))
        gone = list(dict.fromkeys(line.name for line in file.gone))
        names = ", ".join(gone[:_NAMED]) + (", …" if len(gone) > _NAMED else "")
        print(
            f"Rows of {file.path} that are gone from the pool: {len(gone)} ({names}). They stay in the file; "
            f"the model does not get their labels, of which there are {answers}."
        )
    if not grows:
        return
    if classes.are_numbers:
        given = {label for file in files for label in labels_of(file.lines)}
        missing = [str(number) for number in range(classes.declared, len(classes)) if number not in given]
        if missing:
            print(
                f"Labels are the numbers of classes, from 0 on, and no row has {', '.join(missing[:_NAMED])}"
                f"{', …' if len(missing) > _NAMED else ''}. If there are no such classes, label with names in place of "
                "numbers, such as c1 and c2."
            )
        return
    counts = Counter(classes.names[label] for file in files for label in labels_of(file.lines))
    for name, count in counts.items():
        other = closest(name, [known for known in counts if known != name], _SAME) if count == 1 else None
        if other is not None and counts[other] > count:
            print(f"Is {name!r} (one label) another class than {other!r} ({counts[other]})? If not, correct it.")


def seeded(options: argparse.Namespace) -> torch.Generator:
    """The generator of ``--seed``; CommandError if torch takes no such number."""
    if options.seed >= _SEEDS:
        raise CommandError(f"--seed must be in [0, 2**64), got {options.seed}")
    return torch.Generator(device="cpu").manual_seed(options.seed)


def limit_of(options: argparse.Namespace) -> float | None:
    """The bytes of ``--memory``."""
    return None if options.memory is None else float(options.memory) * 2**20


def _report(
    options: argparse.Namespace, files: Sequence[AnswerFile], added: Sequence[Sequence[Line]], start: Start
) -> None:
    tell_changes(files, start.classes, grows=start.classes.grows)
    lines = [line for file in files for line in file.lines]
    left = files[0].pool_rows - len(rows_of(lines))
    new = [line for more in added for line in more]
    number, waiting = len(rows_of(new)), sum(line.waits for line in lines) - len(new)
    answers = f"Answers: {len(labels_of(lines))}."
    if options.annotators:
        report(files, added, options.overlap, asked=options.number > 0 and left > 0)
    elif number > 0:
        print(f"{answers} Rows chosen: {number}. {files[0].to_do}")
        if waiting:
            print(f"Rows of the file that still wait for a label: {waiting}.")
    elif waiting:
        print(f"{answers} Rows of {options.out} that still wait for a label: {waiting}.")
        if options.number > 0 and left > 0:
            print("No rows were added to them. To get more all the same, pass --more.")
    elif left > 0:
        print(answers)
    if left == 0 and number > 0:
        print(f"There are no more rows than these {number}.")
    if left == number == waiting == 0:
        skipped = len(rows_of(lines)) - len(rows_of(line for line in lines if line.label is not None))
        counted = "" if options.annotators else f"{answers} "
        print(f"{counted}Every row of the pool has an answer{f', {skipped} of them skip' if skipped else ''}.")
    for words in disagreements(lines, start.classes):
        print(words)
    if left > 0 and (text := start.progress(lines)):
        print(text)
    if left == number == waiting == 0 and options.save is None:
        print("To keep the model, run the command again with --save model.safetensors.")
