"""Types of recipes, of what they make, and of their errors."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lapal_ext.study.feature_file import Labelled


class RecipeError(RuntimeError):
    """This machine lacks something that a recipe needs; the message says what, and how to get it."""


class Made(NamedTuple):
    """A feature set that was made by a recipe."""

    train: Labelled  # [N, D], [N]
    test: Labelled  # [T, D], [T]
    class_names: tuple[str, ...]  # [C]


class Recipe(NamedTuple):
    """How to make a feature set from packages."""

    cost: str  # the work and the time that it takes, for a message
    packages: Mapping[str, str]  # distributions by module, of the imports that the extra installs
    make: Callable[[bool], Made]  # with a progress bar if its argument is True
