"""Asking an annotator for labels on the terminal: the model gets each answer before the next question."""

import argparse
import io
import sys

from torch import Tensor

from lapal_ext.cli.errors import CommandError
from lapal_ext.cli.items import read_items
from lapal_ext.cli.select.answers import Line
from lapal_ext.cli.select.batch import conclude, open_label_file, tell_changes
from lapal_ext.cli.select.classes import COMMANDS, LIST, MORE, QUIT, SKIP, UNDO, Classes, is_command
from lapal_ext.cli.select.display import cut, in_columns, item_lines, safe, wrapped
from lapal_ext.cli.select.label_file import RESERVED
from lapal_ext.cli.select.questions import Questions
from lapal_ext.cli.select.start import Start
from lapal_ext.pool.feature_files import map_file
from lapal_ext.pool.sharding import Ranks, Shard

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
    file, record = open_label_file(options, items, pool, shard, ranks, start.classes)
    tell_changes(file, start.classes, grows=grows)
    if options.classes_complete:
        start.classes.grows = False
    given = [line for line in file.lines if not line.waits]
    unanswered = {line.row: line for line in file.lines if line.waits}
    questions = Questions(options, start, pool, given)
    if given:
        print(f"Going on from {len(given)} answers in {file.path}.")
    _introduce(start.classes)
    asked, number = 0, min(options.number, len(pool) - len(given))
    while asked < number:
        row = questions.ask()
        logits = questions.logits(row, given) if start.is_taught(given) else None
        heading = f"[{asked + 1}/{number}] {safe(items.name(row))}"
        question = _Question(heading, logits, start.classes, items.shown(row))
        reply = question.reply()
        if reply == QUIT:
            break
        if reply == UNDO:
            if not given:
                print("There is nothing to undo.")
                continue
            undone = given.pop()
            unanswered[undone.row] = undone._replace(label=None, skipped=False)
            if start.classes.grows:
                file.drop_unused_classes(given)
            questions.take_back(given, undone.row)
            asked = max(0, asked - 1)
            print(f"Took back the answer for {safe(items.name(undone.row))}.")
        else:
            line = unanswered.pop(row, None)
            if line is None:
                name = "" if items.ids is None else items.ids.ids[row]
                line = Line(row, others=items.cells(row), name=name, suggested=question.suggestion)
                record.note({name: row})
            given.append(line._replace(skipped=True) if reply == SKIP else line._replace(label=int(reply)))
            questions.add(given)
            asked += 1
        file.write([*given, *unanswered.values()])
    if len(given) == len(pool):
        print(f"Every row of the pool is answered, in {file.path}.")
    elif given:
        print(f"{len(given)} answers in {file.path}. The same command goes on from there.")
    if text := start.progress(given):
        print("\n".join(wrapped(text)))
    conclude(options, file.lines, start, pool, ranks)


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
        logits: Tensor | None,  # [C], None before the first answer
        classes: Classes,
        shown: str,
    ) -> None:
        self._classes = classes
        self.suggestion = ""  # the likeliest class
        self._guess: int | None = None
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
        return "label: " if self._guess is None else f"label [{safe(self._classes.names[self._guess])}]: "

    def reply(self) -> str:
        """The number of a class or one of ``COMMANDS``; the end of the input and Ctrl-C mean quit."""
        question = f"{self._text}\n{self._prompt}"
        while True:
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
        if text and (meant := self._classes.close_to(text)) is not None:
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
