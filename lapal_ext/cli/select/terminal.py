"""Asking an annotator for labels on the terminal: the model gets each answer before the next question."""

import argparse
import io
import sys
from collections.abc import Iterable

from torch import Tensor

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.items import Items, read_items
from lapal_ext.cli.select.annotators import disagreements
from lapal_ext.cli.select.answers import Line, rows_of
from lapal_ext.cli.select.batch import conclude, open_label_files, tell_changes
from lapal_ext.cli.select.classes import BACK, COMMANDS, LIST, MORE, QUIT, SKIP, UNDO, Classes, is_command
from lapal_ext.cli.select.display import cut, in_columns, item_lines, safe, wrapped
from lapal_ext.cli.select.label_file import RESERVED, LabelFile
from lapal_ext.cli.select.questions import Questions
from lapal_ext.cli.select.start import Start
from lapal_ext.pool.feature_files import map_file
from lapal_ext.pool.sharding import Ranks, Shard

_NAMED = 8  # classes that begin with what was typed
_LIKELY = 3  # classes that a question names with their probabilities


def interview(options: argparse.Namespace) -> None:
    """Ask until there are ``--number`` more answers, and write the label file after each.

    The model is fitted to the answers in the file first. Answers are written in their order, before rows that wait.

    Raises:
        CommandError: a file cannot be read or written.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # an invalid byte makes an invalid label, not an error
    items = read_items(options, RESERVED)
    ranks, pool = Ranks(), map_file("--pool", options.pool)
    shard = Shard(ranks, [0, len(pool)])
    start = Start(options, pool, shard)
    grows = start.classes.grows
    [(file, record)] = open_label_files(options, items, pool, shard, ranks, start.classes)
    assert isinstance(file, LabelFile)
    tell_changes([file], start.classes, grows=grows)
    if options.classes_complete:
        start.classes.grows = False
    given = [line for line in file.lines if not line.waits]
    unanswered = [line for line in file.lines if line.waits]
    questions = Questions(options, start, pool, given)
    if given:
        print(f"Going on from {len(given)} answers in {file.path}.")
    _introduce(start.classes)
    asked, number = 0, min(options.number, len(pool) - len(rows_of(given)))
    while asked < number:
        row = questions.ask()
        logits = questions.logits(row, given) if start.is_taught(given) else None
        heading = f"[{asked + 1}/{number}] {safe(items.name(row))}"
        question = _Question(heading, start.classes, items.shown(row), logits)
        reply = question.reply()
        if reply == BACK:
            reply = _go_back(given, unanswered, file, start.classes, questions, items)
        if reply == QUIT:
            break
        if reply == BACK:
            continue
        if reply == UNDO:
            if not given:
                print("There is nothing to undo.")
                continue
            undone = given.pop()
            unanswered.append(undone._replace(label=None, skipped=False))
            if start.classes.grows:
                given = file.drop_unused_classes(given)
            questions.take_back(given, undone.row)
            asked = max(0, asked - 1)
            print(f"Took back the answer for {safe(items.name(undone.row))}.")
        else:
            line = next((line for line in unanswered if line.row == row), None)
            if line is not None:
                unanswered.remove(line)
            else:
                name = "" if items.ids is None else items.ids.ids[row]
                line = Line(row, others=items.cells(row), name=name, suggested=question.suggestion)
                record.note({name: row})
            given.append(_answered(line, reply))
            questions.add(given)
            asked += 1
        try:
            file.write([*given, *unanswered])
        except CommandError as error:
            raise CommandError(f"{error} (the last answer, for {safe(items.name(row))}, is not kept)") from error
    if len(rows_of(given)) == len(pool):
        print(f"Every row of the pool is answered, in {file.path}.")
    elif given:
        print(f"{len(given)} answers in {file.path}. The same command goes on from there.")
    for words in disagreements(given, start.classes):
        print("\n".join(wrapped(words)))
    if text := start.progress(given):
        print("\n".join(wrapped(text)))
    conclude(options, file.lines, start, pool, ranks)


def _go_back(
    given: list[Line],
    unanswered: Iterable[Line],
    file: LabelFile,
    classes: Classes,
    questions: Questions,
    items: Items,
) -> str:
    """Show the last answer, and from there the one before or the next, to keep or to correct them.

    Corrections are made in ``given``, the file and the model.

    Returns:
        ``BACK`` after the newest answer, or the command that ends this: ``UNDO`` or ``QUIT``.
    """
    if not given:
        print("There is no answer to go back to.")
    place = len(given) - 1
    while 0 <= place < len(given):
        line = given[place]
        label = SKIP if line.skipped else classes.names[line.label or 0]
        heading = f"[answer {place + 1} of {len(given)}] {safe(items.name(line.row))}; its label is {safe(label)}"
        reply = _Question(heading, classes, items.shown(line.row), kept=line).reply()
        if reply in (UNDO, QUIT):
            return reply
        if reply == BACK:
            if place == 0:
                print("There is no answer before this one.")
            place = max(0, place - 1)
            continue
        corrected = _answered(line, reply)
        if corrected != line:
            given[place] = corrected
            if classes.grows:
                given[:] = file.drop_unused_classes(given)
            questions.correct(given, given[place])
            file.write([*given, *unanswered])
        place += 1
    return BACK


def _answered(line: Line, reply: str) -> Line:
    """The line with an answer: ``SKIP``, or the number of a class."""
    skipped = reply == SKIP
    return line._replace(label=None if skipped else int(reply), skipped=skipped)


def _introduce(classes: Classes) -> None:
    if not classes.names:
        print("\n".join(wrapped("Type the name of a class, or its number if classes have no names.")))
    elif classes.are_numbers:
        print(f"A label is {classes.allowed()}.")
    else:
        print("\n".join(_class_lines(classes)))
        name = "a name" if classes.grows else "a name or the beginning of one"
        print("\n".join(wrapped(f"Type a number, {name}; Enter takes the first guess.")))
    keys = f"You may also type {', '.join(COMMANDS)}, or {LIST} for all classes."
    print("\n".join(wrapped(keys)))


def _class_lines(classes: Classes) -> list[str]:
    return in_columns(f"{number} {safe(name)}" for number, name in enumerate(classes.names))


class _Question:
    """One question, which is asked until there is an answer to it."""

    def __init__(
        self,
        heading: str,
        classes: Classes,
        shown: str,
        logits: Tensor | None = None,  # [C], None before the first answer
        kept: Line | None = None,  # the answer that Enter keeps
    ) -> None:
        self._classes = classes
        self.suggestion = ""  # the likeliest class
        self._guess = None if kept is None else kept.label
        self._enter = SKIP if kept is not None and kept.skipped else ""  # what Enter means without a guess
        if logits is not None:
            likely = logits.softmax(0)[: len(classes)].topk(min(_LIKELY, len(classes)))
            self._guess = int(likely.indices[0])
            self.suggestion = classes.names[self._guess]
            guesses = ", ".join(
                f"{safe(classes.names[number])} {100 * share:.0f}%"
                for number, share in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
            )
            heading += f"; the model says {guesses}"
        lines, self._hidden = cut(item_lines(shown), MORE)
        self._text = "\n".join([*wrapped(heading), *lines])
        self._unknown = ""  # the last answer that is no class

    @property
    def _prompt(self) -> str:
        """What Enter means is in brackets."""
        meaning = self._enter if self._guess is None else safe(self._classes.names[self._guess])
        return f"label [{meaning}]: " if meaning else "label: "

    def reply(self) -> str:
        """The number of a class or one of ``COMMANDS``; the end of the input and Ctrl-C mean quit."""
        question = f"{self._text}\n{self._prompt}"
        while True:
            sys.stdout.flush()  # whose error input() does not show
            try:
                text = input(question).strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return QUIT
            if text == MORE:
                print("\n".join(self._hidden) or "There is no more to see.")
                self._hidden = []
            elif text == LIST:
                print("\n".join(_class_lines(self._classes)) or "There is no class yet.")
            elif is_command(text):
                return text.lower()
            elif not text and self._guess is None and self._enter:
                return self._enter
            elif (label := self._label(text)) is not None:
                return str(label)
            question = self._prompt

    def _label(self, text: str) -> int | None:
        """The class that is meant, or None after a message."""
        if not text and self._guess is not None:
            return self._guess
        label = self._classes.number_of(text)
        if label is None and not self._classes.grows:  # else it may be a class of its own
            label = self._classes.beginning_with(text)
        if label is not None:
            return label
        if text and self._classes.grows and (text == self._unknown or not self._classes.names):
            return self._added(text)
        self._unknown = text
        hint = ""
        several = self._classes.all_beginning_with(text)
        if len(several) > 1:
            hint = f" Several classes begin with {safe(text)}: {', '.join(map(safe, several[:_NAMED]))}."
        elif text and (meant := self._classes.close_to(text)) is not None:
            hint = f" Did you mean {safe(meant)}? Then press Enter."
            self._guess = self._classes.names.index(meant)
        if text and self._classes.grows:
            self._say(f"{safe(text)} is no class so far.{hint} Type it again to add it.")
        else:
            self._say(f"A label is {safe(self._classes.allowed())}; or type {', '.join(COMMANDS)}.{hint}")
        return None

    def _added(self, text: str) -> int | None:
        try:
            return self._classes.add(text)
        except CommandError as error:
            self._say(safe(f"{error}."))
            return None

    @staticmethod
    def _say(text: str) -> None:
        print("\n".join(wrapped(text)))
