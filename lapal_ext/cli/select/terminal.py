"""Asking an annotator for labels on the terminal: the model absorbs each answer before the next question."""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lapal_ext.cli.select.inputs import texts_of
from lapal_ext.cli.select.label_file import (
    COMMANDS,
    QUIT,
    SKIP,
    UNDO,
    LabelFile,
    Line,
    class_number,
    describe_classes,
)
from lapal_ext.selection.sequential_selector import SequentialSelector

_LIKELY = 3  # classes that a question names with their probabilities


def interview(
    selector: SequentialSelector,
    pool: Tensor,  # [N, D]
    file: LabelFile,
    number: int,
    class_names: Sequence[str],
    texts: Path | None,
) -> None:
    """Ask until there are ``number`` more answers, and write the label file after each.

    Args:
        selector: without any labels so far.
        pool: its features.
        file: its answers are absorbed first. Answers are written before rows without an answer, in their order.
        number: answers to ask for; fewer if the pool has fewer rows left.
        class_names: one per class.
        texts: file whose lines describe the rows of the pool.

    Raises:
        CommandError: a file cannot be read or written.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # an invalid byte makes an invalid label, not an error
    given = [line for line in file.lines if not line.waits]
    unanswered = {line.row: line for line in file.lines if line.waits}
    for line in given:
        _tell(selector, line)
    if given:
        print(f"Going on from {len(given)} answers in {file.path}.")
    print(f"A label is {describe_classes(class_names)}. You may also type {', '.join(COMMANDS)}.")
    asked, number = 0, min(number, len(pool) - len(given))
    while asked < number:
        row = int(selector.ask())
        reply = _reply(_question(f"{asked + 1}/{number}", row, selector, pool, class_names, texts), class_names)
        if reply == QUIT:
            break
        if reply == UNDO:
            if not given:
                print("There is nothing to undo.")
                continue
            selector.undo()
            undone = given.pop()
            unanswered[undone.row] = undone._replace(label=None, skipped=False)
            asked = max(0, asked - 1)
            print(f"Took back the answer for row {undone.row}.")
        else:
            line = unanswered.pop(row, Line(row))
            line = line._replace(skipped=True) if reply == SKIP else line._replace(label=int(reply))
            _tell(selector, line)
            given.append(line)
            asked += 1
        file.write([*given, *unanswered.values()])
    if len(given) == len(pool):
        print("Every row of the pool is answered.")
    elif given:
        print(f"{len(given)} answers in {file.path}. The same command goes on from there.")


def _tell(selector: SequentialSelector, line: Line) -> None:
    if line.label is None:
        selector.skip(line.row)
    else:
        selector.tell(line.row, line.label)


def _question(
    place: str,
    row: int,
    selector: SequentialSelector,
    pool: Tensor,  # [N, D]
    class_names: Sequence[str],
    texts: Path | None,
) -> str:
    posterior = selector.posterior
    probabilities = posterior.predict_proba(pool[row : row + 1].to(posterior.mean.dtype))[0]
    likely = probabilities.topk(min(_LIKELY, len(class_names)))
    guesses = ", ".join(
        f"{class_names[number]} {100 * share:.0f} %"
        for number, share in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
    )
    shown = "" if texts is None else f"  {texts_of(texts, [row])[0]}\n"
    return f"[{place}] row {row}; the model says {guesses}\n{shown}label: "


def _reply(question: str, class_names: Sequence[str]) -> str:
    """The number of a class or one of ``COMMANDS``; the end of the input and Ctrl-C mean quit."""
    while True:
        try:
            text = input(question).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return QUIT
        label = class_number(text, class_names)
        if label is not None:
            return str(label)
        if text.lower() in COMMANDS:
            return text.lower()
        print(f"A label is {describe_classes(class_names)}; or type {', '.join(COMMANDS)}.")
        question = "label: "
