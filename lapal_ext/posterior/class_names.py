"""Names of the classes of a posterior."""

import difflib
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

_SHOWN = 3  # names that ``print`` lists
ALIKE = 0.6  # similarity from which a name is suggested for another one


def check_class_names(names: object, num_classes: int) -> tuple[str, ...] | None:
    """Return one name per class, or None if ``names`` is None.

    Raises:
        TypeError: not a sequence of str.
        ValueError: the number of names is not that of classes, or a name is empty or occurs twice.
    """
    if names is None:
        return None
    # A set has no order, which numbers the classes.
    if isinstance(names, (str, AbstractSet)) or not isinstance(names, Iterable):
        raise TypeError(f"class_names must be a sequence of str or None, got {type(names).__name__}")
    try:
        given = tuple(names)
    except TypeError as error:  # a 0-d array
        raise TypeError(f"class_names must be a sequence of str or None, got {type(names).__name__}: {error}") from None
    for name in given:
        if not isinstance(name, str):
            raise TypeError(f"class_names must hold str, got {type(name).__name__}")
    if len(given) != num_classes:
        raise ValueError(f"class_names must hold {num_classes} names, one per class, got {len(given)}")
    for place, name in enumerate(given):
        if not name:
            raise ValueError(f"class_names must not be empty, got an empty name for class {place}")
        if name in given[:place]:
            raise ValueError(f"class_names must not hold duplicates, got {name!r} more than once")
    return tuple(map(str, given))  # str itself, where a library has a subclass of it


def class_numbers(name: str, labels: object, class_names: tuple[str, ...] | None) -> object:
    """Replace names of classes by their numbers; labels that are no names are returned unchanged.

    Args:
        name: name of the argument, for errors.
        labels: one name, or a list or an array of names, or other labels.
        class_names: of all classes; None if they are not known.

    Raises:
        TypeError: names, of classes that have none; or names and other labels together.
        ValueError: not the name of a class.
    """
    if isinstance(labels, str):
        return class_numbers(name, [labels], class_names)[0]  # type: ignore[index]  # a list
    values: Sequence[object] = []
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "OUT":
        values = labels.tolist() if labels.ndim == 1 else []
    elif isinstance(labels, (list, tuple)):
        values = labels
    if not any(isinstance(value, str) for value in values):
        return labels
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must hold names of classes or their numbers, got str and {type(value).__name__}")
    if class_names is None:
        raise TypeError(f"{name} must hold integers where the classes have no names, got str: pass class_names first")
    numbers = {known: number for number, known in enumerate(class_names)}
    try:
        return [numbers[str(value)] for value in values]
    except KeyError as error:
        given = str(error.args[0])
        meant = closest(given, class_names)
        hint = "" if meant is None else f": did you mean {meant}?"
        raise ValueError(
            f"{name} must hold names of classes, got {given!r}, which is none of{first_names(class_names)}{hint}"
        ) from None


def closest(text: str, names: Sequence[str], cutoff: float = ALIKE) -> str | None:
    """The name that is most like a text, whatever its case; None if none is alike."""
    folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(text.casefold(), folded, 1, cutoff)
    return folded[found[0]] if found else None


def check_new_name(name: object, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return ``names`` with ``name`` appended, or None if the classes have no names.

    Raises:
        TypeError: not a str, and the classes have names.
        ValueError: the classes have no names, or the name is empty or in use.
    """
    if names is None:
        if name is not None:
            raise ValueError(f"name must be None where the classes have no names, got {name!r}: set class_names first")
        return None
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, as the other classes have one, got {type(name).__name__}")
    if not name or name in names:
        raise ValueError(f"name must be one that no other class has, got {name!r}")
    return (*names, str(name))


def first_names(names: tuple[str, ...] | None) -> str:
    """The first few names in brackets, for ``print``; an empty string if the classes have none."""
    if names is None:
        return ""
    return f" ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
