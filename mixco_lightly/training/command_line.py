"""What the recipes' commands share: options, one-line errors, tables.

What only the extra ``recipes`` installs is imported inside the functions, so that a recipe can be
imported without it.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mixco_lightly.training.option_files import describe_unknown, unknown_options
from mixco_lightly.training.recipe_files import INSTALLED_RECIPES

Config = TypeVar("Config")
# What the extra installs: distributions and what they are imported as.
_EXTRA = {
    "jsonargparse": "jsonargparse",
    "docstring-parser": "docstring_parser",
    "pyyaml": "yaml",
    "matplotlib": "matplotlib",
    "kornia": "kornia",
    "jinja2": "jinja2",
    "bokeh": "bokeh",
}


def parse_options(
    config_class: type[Config],
    description: str | None,
    check_file: Callable[[Path], None] | None = None,
) -> Config:
    """Reads the fields of a dataclass from the command line and from ``--config``.

    ``--config`` takes a YAML file or the name of a preset. A bool field is a flag (``--resume``, or
    ``--resume=false``); a list field takes several values (``--dataset digits cifar10``). Names
    must be written in full.

    A wrong option ends the program with exit code 2 and one line that names it. So does a missing
    package of the extra ``recipes``, with exit code 1.

    Args:
        config_class: The dataclass. Its docstring describes the options.
        description: What ``--help`` starts with.
        check_file: Checks the file of ``--config`` before its options are read. Its ValueError
            ends the program with one line and exit code 1.
    """
    _check_packages()
    from mixco_lightly.training.option_parser import OptionParser

    parser = OptionParser(config_class, check_file, description=description)
    try:
        parsed = parser.parse_args()
    except Exception as error:  # jsonargparse fails on a few values with errors of any kind
        parser.error(f"the options cannot be read: {error}")
    return parser.to_config(config_class, parsed)


def check_options(config_class: type[Config], options: dict[str, Any]) -> Config:
    """Reads the fields of a dataclass from a dictionary, as parse_options does from a file.

    Raises:
        ValueError: If an option is unknown or its value is not of its type.
    """
    from mixco_lightly.training.option_parser import OptionChecker

    parser = OptionChecker(config_class)
    unknown = unknown_options(config_class, options)
    if unknown:
        parser.error(f"there is no option {describe_unknown(config_class, unknown)}")
    parser.check_values(options)
    return parser.to_config(config_class, parser.parse_object(options))


def started_as() -> str:
    """Returns the program as the user called it, to say how to call it again."""
    page = Path(sys.argv[0])
    if page.parent == INSTALLED_RECIPES:
        return f"mixco-lightly {page.stem.replace('_', '-')}"
    return f"python {shlex.quote(sys.argv[0])}"


def typed_command() -> str:
    """Returns the whole command as the user called it."""
    return shlex.join([*shlex.split(started_as()), *sys.argv[1:]])


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns of numbers are aligned right.

    Nothing is cut off: a narrow terminal folds cells, and a file or a pipe has no width.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
        is_number = all(cell[:1].isdigit() for cell in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 10_000).print(table)


def _check_packages() -> None:
    """Ends the program if packages of the extra ``recipes`` are missing."""
    missing = [name for name, module in _EXTRA.items() if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(
            f"error: the recipes need packages that are not installed ({', '.join(missing)}): "
            "pip install 'mixco-lightly[recipes]'"
        )
