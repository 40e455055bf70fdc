"""Files of options, the presets among them, and what an unknown name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from mixco_lightly.training.recipe_files import load_page, recipes_folder

# Short names from other tools that are not similar to ours.
_ALIASES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "arch": "backbone",
    "model": "backbone",
    "workers": "num_workers",
}


def read_options(path: Path) -> dict[str, Any]:
    """Reads the options in a YAML file, such as a run's config.yaml.

    Raises:
        ValueError: If the file is not YAML or has no options.
        OSError: If it cannot be read.
    """
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} has no options: write one on each line, such as 'epochs: 30'.")
    return options


def find_preset(name: str) -> Path:
    """Returns the file of a preset.

    Args:
        name: The preset's name, with or without ``.yaml``.

    Raises:
        ValueError: If there is no such preset. The message names similar ones.

    Examples:
        >>> from mixco_lightly.training.option_files import find_preset
        >>> find_preset("small-cifar10-moco").name
        'small-cifar10-moco.yaml'
    """
    folder = recipes_folder() / "presets"
    presets = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    plain = name.removesuffix(".yaml")
    if plain in presets:
        return presets[plain]
    # The last part too: a path into another folder may name a preset that exists.
    close = difflib.get_close_matches(plain.lower(), presets, n=3) or difflib.get_close_matches(
        Path(plain).name.lower(), presets, n=3
    )
    meant = f"did you mean {' or '.join(close)}?" if close else f"the presets are in {folder}"
    raise ValueError(f"there is neither a file nor a preset {name!r} ({meant})")


def unknown_options(config_class: type[Any], options: Mapping[Any, Any]) -> list[str]:
    """Returns the names in a file that are no options; ``a.b`` is the part b of the option a."""
    known = {"config", *(field.name for field in fields(config_class))}
    return [name for name in map(str, options) if name.partition(".")[0] not in known]


def describe_unknown(config_class: type[Any], names: Sequence[str], prefix: str = "--") -> str:
    """Lists options that do not exist, each with those that the user may have meant."""
    known = [field.name for field in fields(config_class)]
    described = []
    for name in names:
        plain = name.replace("-", "_").lower()
        close = [alias for alias in [_ALIASES.get(plain)] if alias in known]
        close = close or [option for option in known if plain and option.startswith(plain)]
        close = close or difflib.get_close_matches(plain, known, n=1)
        meant = f" (did you mean {' or '.join(prefix + option for option in close[:3])}?)"
        described.append(f"{prefix}{name}{meant if close else ''}")
    return ", ".join(described)


def find_recipes(options: Mapping[Any, Any]) -> list[str]:
    """Returns the pages of the recipes' folder that have all of these options.

    It runs every page up to its ``__main__`` block, which takes seconds: call it only to explain an
    error.
    """
    return [
        page.name
        for page in sorted(recipes_folder().glob("*.py"))
        if any(not unknown_options(kind, options) for kind in _config_classes(page))
    ]


def _config_classes(page: Path) -> list[type[Any]]:
    """Returns the options classes that a page defines or imports, without their parents."""
    kinds = {
        value
        for name, value in vars(load_page(page)).items()
        if name.endswith("Config") and isinstance(value, type) and is_dataclass(value)
    }
    return [x for x in kinds if not any(x is not y and issubclass(y, x) for y in kinds)]
