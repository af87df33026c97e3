"""The classes of ``lapal-ext select``: numbered names, from a file or as they occur in the answers."""

import re
from collections.abc import Iterable

from lapal_ext.cli.errors import CommandError
from lapal_ext.pool.row_ids import composed
from lapal_ext.posterior.class_names import closest

SKIP, BACK, UNDO, QUIT = "skip", "back", "undo", "quit"
COMMANDS = (SKIP, BACK, UNDO, QUIT)  # what may be typed in place of a label; no class may have such a name
MORE, LIST = "+", "?"  # keys of the terminal
MOST = 1_000_000
_MOST_UNDECLARED = 1000  # one more class takes memory for one more row of weights, and a number may be a slip
_NUMBER = re.compile(r"([0-9]{1,9})(\.0+)?")  # spreadsheets turn integers into floats in columns with gaps
_SHOWN = 5  # names that a message lists


def whole_number(text: str) -> int | None:
    """The whole number that a cell holds, or None if it holds something else."""
    number = _NUMBER.fullmatch(text)
    return int(number[1]) if number else None


def is_command(text: str) -> bool:
    """Whether a text means something else than a class where labels are typed."""
    return text.lower() in COMMANDS or text in (MORE, LIST)


def _no_name(text: str) -> str:
    return f"a class must not be called {text!r}, which is a command of --interactive"


class Classes:
    """Names of classes in the order of their numbers; a number is its own name where there are no others.

    Args:
        names: of the classes, distinct.
        grows: whether a name that occurs in the answers adds a class.
        source: the file of the names, for errors.
        by_name: whether an answer is always the name of its class, as a choice of Label Studio is. A name may then look
            like a number or a command.

    Raises:
        CommandError: names cannot be told apart from each other, from numbers or from commands.
    """

    def __init__(
        self, names: Iterable[str], *, grows: bool = False, source: object = "--classes", by_name: bool = False
    ) -> None:
        self.names: list[str] = []
        self.grows, self._by_name = grows, by_name
        for number, name in enumerate(names if by_name else map(composed, names)):
            if name in self.names:
                raise CommandError(f"{source} must hold a different name for each class, got {name!r} twice")
            if is_command(name) and not by_name:
                raise CommandError(f"{source}: {_no_name(name)}")
            if name.isdigit() and name != str(number) and not by_name:
                raise CommandError(f"{source} must not call class {number} {name!r}, the number of another class")
            self.names.append(name)
        self.declared = len(self.names)  # the numbers of further classes depend on the order of the answers

    def __len__(self) -> int:
        """Number of classes so far."""
        return len(self.names)

    @property
    def are_numbers(self) -> bool:
        """Whether no class has a name besides its number."""
        return not self._by_name and all(name == str(number) for number, name in enumerate(self.names))

    def number_of(self, text: str) -> int | None:
        """The class with this name or number, or None if there is none.

        Spreadsheets capitalise cells, so without an exact match a single name that only differs in case is accepted.
        """
        text = composed(text)
        if text in self.names:
            return self.names.index(text)
        alike = [number for number, name in enumerate(self.names) if name.casefold() == text.casefold()]
        if len(alike) == 1:
            return alike[0]
        number = whole_number(text)
        return number if number is not None and number < len(self.names) else None

    def number_in_file(self, text: str) -> int | None:
        """``number_of`` for a file, where the answers may be sorted: only names mean classes that answers have added.

        Raises:
            CommandError: the number of such a class.
        """
        number = self.number_of(text)
        if (
            number is None
            or number < self.declared
            or self.are_numbers
            or self.names[number].casefold() == composed(text).casefold()
        ):
            return number
        raise CommandError(f"label must be the name of its class, since classes have no fixed numbers, got {text!r}")

    def beginning_with(self, text: str) -> int | None:
        """The only class whose name begins with a text, whatever its case."""
        found = self.all_beginning_with(text)
        return self.names.index(found[0]) if len(found) == 1 else None

    def all_beginning_with(self, text: str) -> list[str]:
        """The names that begin with a text, whatever their case; none for an empty text."""
        return [name for name in self.names if text and name.casefold().startswith(text.casefold())]

    def add(self, text: str) -> int:
        """Add the class that an answer names, and return its number.

        Raises:
            CommandError: it is no name for a class; the text follows the place of the answer.
        """
        number = None if self._by_name else whole_number(text)
        if self.names and self.are_numbers != (number is not None):
            kind = "numbers" if self.are_numbers else "names"
            raise CommandError(f"labels must be all numbers or all names, got {text!r} where others are {kind}")
        if is_command(text) and not self._by_name:
            raise CommandError(_no_name(text))
        if number is None:
            if not text.isprintable():
                raise CommandError(f"a class must have a name that can be printed, got {text!r}")
            self.names.append(text if self._by_name else composed(text))
            return len(self.names) - 1
        if number >= _MOST_UNDECLARED:
            raise CommandError(
                f"label must be below {_MOST_UNDECLARED}, got {number}: pass --classes N for more classes"
            )
        self.names += map(str, range(len(self.names), number + 1))
        return number

    def drop_unused(self, labels: Iterable[int]) -> dict[int, int]:
        """Remove classes that answers have added and that none of these labels is; numbers below a label stay.

        Returns:
            The number of each class that is left, by its number before.
        """
        used = set(labels)
        kept = [number for number in range(len(self.names)) if number < self.declared or number in used]
        if self.are_numbers:
            kept = list(range(max(kept, default=-1) + 1))
        self.names[:] = [self.names[number] for number in kept]
        return {old: new for new, old in enumerate(kept)}

    def allowed(self) -> str:
        """The labels that may be typed, for messages."""
        if not self.names:
            return "the name or the number of a class"
        numbers = f"a number from 0 to {len(self.names) - 1}"
        if self.are_numbers:
            return numbers
        names = f"{', '.join(self.names[:_SHOWN])}{', …' if len(self.names) > _SHOWN else ''}"
        return f"{numbers} or a name ({names})"

    def close_to(self, text: str) -> str | None:
        """The name that was probably meant: the only one that begins with the text, else the one most like it."""
        begun = self.beginning_with(text)
        return closest(text, self.names) if begun is None else self.names[begun]

    def model_names(self) -> tuple[str, ...] | None:
        """Names for a posterior; None where they are its numbers."""
        return None if self.are_numbers else tuple(self.names)
