"""Where the recipes are."""

from __future__ import annotations

from pathlib import Path


def recipes_folder() -> Path:
    """Returns the folder of the recipes: in the installed package, or beside it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"
