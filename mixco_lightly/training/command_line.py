"""What the recipes' commands share: options, one-line errors, tables."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser, DefaultHelpFormatter
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from rich.console import Console
from rich.table import Table

from mixco_lightly.data.broken import ImageError

Config = TypeVar("Config")
_MAX_INT = 2**32 - 1  # Lightning's largest seed; more of anything else does not fit into memory
# Short names that other tools have and that are not similar to ours.
_ALIASES = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "arch": "backbone",
    "model": "backbone",
    "workers": "num_workers",
}
# Where jsonargparse and argparse have the value in their messages.
_VALUE = (
    r".*(?:Got|Given) value: (.+)$",
    r".*(?:base 10|to float|\w value): (.+)$",
    r".*: (\S+) does not conform",
)
# What a type asks for, in words.
_EXPECTED = {
    PositiveInt: "a whole number of at least 1",
    NonNegativeInt: "a whole number of at least 0",
    PositiveFloat: "a number above 0",
    NonNegativeFloat: "a number of at least 0",
    ClosedUnitInterval: "a number from 0 to 1",
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
}


def parse_options(
    config_class: type[Config],
    description: str | None,
    check_file: Callable[[Path], None] | None = None,
) -> Config:
    """Reads the fields of a dataclass from the command line and from --config FILE.yaml.

    A field of type bool is a flag (--resume, or --resume=false), one of type list takes several
    values (--dataset digits cifar10). A wrong option ends the program with exit code 2 and a line
    that names it. Names must be written in full: an abbreviation could mean another option.
    ``check_file`` is called with the path of a file before its options are read; its ValueError
    ends the program with one line and exit code 1.
    """
    parser = _Parser(description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    _add_options(parser, config_class)
    parser.check_file = check_file
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
    unknown = _unknown_options(config_class, options)
    if unknown:
        parser.error(f"there is no option {describe_unknown(config_class, unknown)}")
    _check_lists(parser, config_class, options)
    return _options(config_class, parser, parser.parse_object(options))


def read_options(path: Path) -> dict[str, Any]:
    """Reads the options in a YAML file, such as a run's config.yaml.

    Raises:
        ValueError: If the file is not YAML or has no options.
        OSError: If it cannot be read.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} has no options: write one on each line, such as 'epochs: 30'.")
    return options


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
    """The recipes that have all of these options."""
    # Only after an error: each of these modules imports this one.
    from compare import CompareConfig, find_config_classes

    recipes, evaluate = find_config_classes()
    kinds: dict[str, type[Any]] = {**recipes, "evaluate": evaluate, "compare": CompareConfig}
    return [f"{name}.py" for name, kind in kinds.items() if not _unknown_options(kind, options)]


def _add_options(parser: _Parser, config_class: type[Any]) -> _Parser:
    parser.config_class = config_class
    parser.add_argument("--config", action=_ConfigFile, help="YAML file of options")
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


def _unknown_options(config_class: type[Any], options: Mapping[Any, Any]) -> list[str]:
    """The names in a file that are no options; ``a.b`` is the part b of the option a."""
    known = {"config", *(field.name for field in fields(config_class))}
    return [name for name in map(str, options) if name.partition(".")[0] not in known]


def _check_lists(parser: ArgumentParser, config_class: type[Any], options: Any) -> None:
    """Refuses a single value for a list, of which jsonargparse does not name the option."""
    for name, kind in get_type_hints(config_class).items():
        value = options.get(name, [])
        if get_origin(kind) is list and not isinstance(value, list):
            parser.error(f"--{name} must be a list in a file, such as [{value}], got {value!r}")


def _expected(kind: Any) -> str:
    """Says in words which values an option of this type takes."""
    members = [member for member in get_args(kind) if member is not type(None)]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, members))}"
    if get_origin(kind) is dict:
        return "a mapping, such as '{\"name\": 1}'"
    if members:  # of a list its elements are checked one by one
        return " or ".join(map(_expected, members))
    return _EXPECTED.get(kind, f"a {getattr(kind, '__name__', kind)}")


class _Parser(ArgumentParser):
    """Says what is wrong with an option in one line, without the usage."""

    config_class: type[Any]
    check_file: Callable[[Path], None] | None = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"error: {self.explain(message)} (--help lists the options)", file=sys.stderr)
        sys.exit(2)

    def explain(self, message: str) -> str:
        """Rewrites jsonargparse's messages, which have Python's types in them, for users."""
        message = " ".join(message.split())
        rest = message.removeprefix("unrecognized arguments: ")
        if rest != message:
            names = [word[2:].partition("=")[0] for word in rest.split() if word[:2] == "--"]
            if not any(names):
                return f"{rest} is not an option: options are written as --name value"
            return f"there is no option {describe_unknown(self.config_class, names)}"
        types = get_type_hints(self.config_class)
        of_value = re.match(r'Parser key "(\w+)"|argument --(\w+)/--no_\w+: invalid', message)
        name = of_value and (of_value[1] or of_value[2])
        if not name or name not in types:
            return re.sub(r'Parser key "([\w.]+)"', r"--\1", message)
        value = next(filter(None, (re.match(pattern, message) for pattern in _VALUE)), None)
        got = f", got {value[1].strip(chr(39))!r}" if value else ""
        return f"--{name} must be {_expected(types[name])}{got}"


class _Checker(_Parser):
    """Raises what is wrong with an option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ValueError(self.explain(message))


class _ConfigFile(ActionConfigFile):
    """Checks a file of options as a whole before jsonargparse reads the values."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        if os.path.isfile(values):  # else it is a missing file, or YAML itself
            if parser.check_file is not None:
                with fail_in_one_line():
                    parser.check_file(Path(values))
            options = read_options(Path(values))
            unknown = _unknown_options(parser.config_class, options)
            if unknown:
                recipes = find_recipes(options)
                named = describe_unknown(parser.config_class, unknown, prefix="")
                if recipes:
                    named = f"{', '.join(unknown)}; it is a file for {' or '.join(recipes)}"
                parser.error(f"{values} has options that {parser.prog} does not have: {named}")
            _check_lists(parser, parser.config_class, options)
        super().__call__(parser, cfg, values, option_string)


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
