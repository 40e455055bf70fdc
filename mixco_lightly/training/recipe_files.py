"""Where the recipes are, and how to load one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixco_lightly.data.own_code import run_file

_PACKAGE = Path(__file__).parents[1]
INSTALLED_RECIPES = _PACKAGE / "recipes"
_CLONED_RECIPES = _PACKAGE.parent / "recipes"


def recipes_folder() -> Path:
    """Returns the folder of the recipes: in the installed package, or beside it in a clone."""
    return INSTALLED_RECIPES if INSTALLED_RECIPES.is_dir() else _CLONED_RECIPES


def load_page(name_or_path: str | Path) -> Any:
    """Runs the file of a recipe, or of another command, and returns its module.

    Args:
        name_or_path: A name, such as ``moco``, or the path of a Python file.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(name_or_path)
    if path.suffix != ".py":
        path = recipes_folder() / f"{name_or_path}.py"
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {str(name_or_path)!r}: {path} is missing.")
    return run_file(path)
