"""What the recipes' commands share: options, one-line errors, tables."""

from __future__ import annotations

import json
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, DefaultHelpFormatter
from rich.console import Console
from rich.table import Table

Config = TypeVar("Config")


def parse_options(config_class: type[Config], description: str | None) -> Config:
    """Reads the fields of a dataclass from the command line and from --config FILE.yaml.

    A field of type bool is a flag: --resume, or --resume=false. A wrong option ends the program
    with exit code 2 and a line that names it.
    """
    parser = ArgumentParser(description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options")
    flags = [name for name, kind in get_type_hints(config_class).items() if kind is bool]
    parser.add_class_arguments(config_class, as_group=False, skip=set(flags))
    docstrings = [docstring_parser.parse(cls.__doc__ or "") for cls in config_class.__mro__]
    helps = {param.arg_name: param.description for doc in docstrings for param in doc.params}
    for flag in flags:
        default = getattr(config_class, flag)
        parser.add_argument(
            f"--{flag}", action=ActionYesNo, nargs="?", default=default, help=helps[flag]
        )
    # By way of JSON jsonargparse's restricted numbers become plain ones, which YAML can write.
    options = json.loads(parser.dump(parser.parse_args(), format="json", skip_none=False))
    options.pop("config", None)
    return config_class(**options)


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of the recipes' descriptions."""


@contextmanager
def fail_in_one_line(
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """Ends the program with one line and exit code 1 where bad input raises an error."""
    try:
        yield
    except errors as error:
        # Out of a worker process an error's text is its traceback, which ends with the message.
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        message = lines[-1] if lines[0].startswith("Caught") else " ".join(lines)
        sys.exit(f"error: {message.removeprefix('mixco_lightly.data.datasets.ImageError: ')}")


def default_num_workers(num_workers: int | None) -> int:
    """The given number, or as many as this process may use processors, 8 at most."""
    if num_workers is not None:
        return num_workers
    can_ask = hasattr(os, "sched_getaffinity")
    return min(8, len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; a column whose cells are all empty is left out."""
    table = Table(title=title, title_justify="left")
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    for i in kept:
        is_number = all(row[i][:1].isdigit() for row in rows)
        table.add_column(columns[i], justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    Console().print(table)
