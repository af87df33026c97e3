"""What a recipe is, what it makes, and what it raises where it cannot."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lapal_ext.study.feature_file import Labelled

Progress = Callable[[int, int], object]
"""Called with how many rows are encoded, and how many there are."""


class RecipeError(RuntimeError):
    """A recipe lacks something on this machine; the message says what, and what would help."""


class Made(NamedTuple):
    """A feature set as a recipe makes it."""

    train: Labelled  # [N, D], [N]
    test: Labelled  # [T, D], [T]
    class_names: tuple[str, ...]  # [C]


class Recipe(NamedTuple):
    """How to make a feature set from packages."""

    cost: str  # what making it takes, for the message before it
    packages: Mapping[str, str]  # distribution by module, of what it imports from the extra
    make: Callable[[Progress], Made]
