"""What the recipes' commands share: options, one-line errors, tables."""

from __future__ import annotations

import json
import math
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, DefaultHelpFormatter
from rich.console import Console
from rich.table import Table

from mixco_lightly.data.broken import ImageError

Config = TypeVar("Config")
_MAX_INT = 2**32 - 1  # Lightning's largest seed; more of anything else does not fit into memory


def parse_options(config_class: type[Config], description: str | None) -> Config:
    """Reads the fields of a dataclass from the command line and from --config FILE.yaml.

    A field of type bool is a flag (--resume, or --resume=false), one of type list takes several
    values (--dataset digits cifar10). A wrong option ends the program with exit code 2 and a line
    that names it.
    """
    parser = _Parser(description=description, formatter_class=_HelpFormatter)
    _add_options(parser, config_class)
    try:
        parsed = parser.parse_args()
    except Exception as error:  # jsonargparse stumbles over a few values, with errors of any kind
        parser.error(f"the options cannot be read: {error}")
    return _options(config_class, parser, parsed)


def check_options(config_class: type[Config], options: dict[str, Any]) -> Config:
    """Reads the fields of a dataclass from a dictionary, as parse_options does from a file.

    Raises:
        ValueError: If an option is unknown or its value is not of its type.
    """
    parser = _add_options(_Checker(), config_class)
    return _options(config_class, parser, parser.parse_object(options))


def _add_options(parser: ArgumentParser, config_class: type[Any]) -> ArgumentParser:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of options")
    types = get_type_hints(config_class)
    special = {name for name, kind in types.items() if kind is bool or get_origin(kind) is list}
    parser.add_class_arguments(config_class, as_group=False, skip=special)
    docstrings = [docstring_parser.parse(cls.__doc__ or "") for cls in config_class.__mro__]
    helps = {param.arg_name: param.description for doc in docstrings for param in doc.params}
    defaults = config_class()
    for name in sorted(special):
        values: dict[str, Any] = {"default": getattr(defaults, name), "help": helps[name]}
        if types[name] is bool:
            parser.add_argument(f"--{name}", action=ActionYesNo, nargs="?", **values)
        else:
            (element,) = get_args(types[name])
            parser.add_argument(f"--{name}", type=element, nargs="+", **values)
    return parser


def _options(config_class: type[Config], parser: ArgumentParser, parsed: Any) -> Config:
    # By way of JSON jsonargparse's restricted numbers become plain ones, which YAML can write.
    options = json.loads(parser.dump(parsed, format="json", skip_unset=False))
    options.pop("config", None)
    types = get_type_hints(config_class)
    for name, value in options.items():
        # An empty text or YAML's null, which jsonargparse lets pass for every type.
        if value is None and type(None) not in get_args(types[name]):
            parser.error(f"--{name} has no value")
        if not _is_finite(value):
            parser.error(f"--{name} must be finite, got {value}")
        if type(value) is int and value > _MAX_INT:
            parser.error(f"--{name} must be at most {_MAX_INT}, got {value}")
    return config_class(**options)


def _is_finite(value: Any) -> bool:
    """Whether no number in an option is NaN or infinite; jsonargparse's positive ones may be."""
    if isinstance(value, (dict, list)):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


class _Parser(ArgumentParser):
    """Says what is wrong with an option in one line, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"error: {' '.join(message.split())} (--help lists the options)", file=sys.stderr)
        sys.exit(2)


class _Checker(ArgumentParser):
    """Raises what is wrong with an option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(" ".join(message.split()))


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
        prefix = f"{ImageError.__module__}.{ImageError.__qualname__}: "
        sys.exit(f"error: {message.removeprefix(prefix)}")
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        sys.exit(f"error: not enough memory: {' '.join(str(error).split())}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; columns of numbers are aligned right.

    Nothing is cut: cells are folded where a terminal is too narrow for them, and a file or a pipe
    has no width.
    """
    table = Table(title=title, title_justify="left")
    for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
        is_number = all(cell[:1].isdigit() for cell in cells)
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 10_000).print(table)
