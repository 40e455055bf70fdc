"""Finds the folder of the recipes: beside the package in a clone, inside it in the wheel."""

from __future__ import annotations

from pathlib import Path


def recipes_folder() -> Path:
    """Returns the folder that holds the commands and their presets.

    Examples:
        >>> from mixco_lightly.training.recipe_files import recipes_folder
        >>> (recipes_folder() / "moco.py").is_file()
        True
    """
    package = Path(__file__).parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"
