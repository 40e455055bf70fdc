"""The parser of options, and its error messages.

It needs jsonargparse, so it is imported only where options are parsed.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import docstring_parser
from jsonargparse import (
    ActionConfigFile,
    ActionYesNo,
    ArgumentParser,
    DefaultHelpFormatter,
    typing as checked,
)

from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.option_files import (
    describe_unknown,
    find_preset,
    find_recipes,
    read_options,
    unknown_options,
)
from mixco_lightly.training.option_types import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

Config = TypeVar("Config")
_MAX_INT = 2**32 - 1  # Lightning's largest seed; more of anything else does not fit into memory
# The types with which jsonargparse checks ours.
_CHECKED = {
    PositiveInt: checked.PositiveInt,
    NonNegativeInt: checked.NonNegativeInt,
    PositiveFloat: checked.PositiveFloat,
    NonNegativeFloat: checked.NonNegativeFloat,
    ClosedUnitInterval: checked.ClosedUnitInterval,
}
_EXPECTED = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
# Where jsonargparse and argparse have the value in their messages.
_VALUE = (
    r".*(?:Got|Given) value: (.+)$",
    r".*(?:base 10|to float|\w value): (.+)$",
    r".*: (\S+) does not conform",
)


class OptionParser(ArgumentParser):
    """Reads the fields of a dataclass; an error is one line, without the usage.

    Args:
        config_class: The dataclass.
        check_file: Checks the file of ``--config`` before its options are read. Its ValueError ends
            the program.
        **kwargs: Passed on to jsonargparse.
    """

    def __init__(
        self,
        config_class: type[Any],
        check_file: Callable[[Path], None] | None = None,
        **kwargs: Any,
    ) -> None:
        # An abbreviation could mean another option.
        super().__init__(
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            usage="%(prog)s [options]",  # argparse would list them all before the description
            **kwargs,
        )
        self.config_class = config_class
        self.check_file = check_file
        self.types = get_type_hints(config_class, include_extras=True)
        self.add_argument(
            "--config", action=_ConfigFile, help="YAML file of options, or the name of a preset"
        )
        defaults = config_class()
        helps = _read_helps(config_class)
        for title, names in group_options(config_class):
            group = self.add_argument_group(title)
            for name in names:
                values = {"default": getattr(defaults, name), "help": helps.get(name)}
                kind = _to_checked(self.types[name])
                if kind is bool:
                    group.add_argument(f"--{name}", action=ActionYesNo, nargs="?", **values)
                elif get_origin(kind) is list:
                    (element,) = get_args(kind)
                    group.add_argument(f"--{name}", type=element, nargs="+", **values)
                else:
                    group.add_argument(f"--{name}", type=kind, **values)

    def to_config(self, config_class: type[Config], parsed: Any) -> Config:
        """Makes the dataclass from parsed options."""
        # By way of JSON jsonargparse's restricted numbers become plain ones, which YAML can write.
        options = json.loads(self.dump(parsed, format="json", skip_unset=False))
        options.pop("config", None)
        for name, value in options.items():
            # jsonargparse accepts an empty text and YAML's null for every type.
            if value is None and type(None) not in get_args(self.types[name]):
                self.error(f"--{name} has no value")
            if not _is_finite(value):
                self.error(f"--{name} must be finite, got {value}")
            if type(value) is int and value > _MAX_INT:
                self.error(f"--{name} must be at most {_MAX_INT}, got {value}")
        return config_class(**options)

    def check_values(self, options: dict[str, Any]) -> None:
        """Checks values in a file for which jsonargparse's error would not name the option."""
        for name, kind in self.types.items():
            if name not in options:
                continue
            value = options[name]
            if get_origin(kind) is list and not isinstance(value, list):
                self.error(f"--{name} must be a list in a file, such as [{value}], got {value!r}")
            if kind is bool and str(value).lower() not in ("true", "yes", "false", "no"):
                self.error(f"--{name} must be {_describe(bool)}, got {value!r}")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with one line and exit code 2."""
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
        of_value = re.match(r'Parser key "(\w+)"|argument --(\w+)/--no_\w+: invalid', message)
        name = of_value and (of_value[1] or of_value[2])
        if not name or name not in self.types:
            return re.sub(r'Parser key "([\w.]+)"', r"--\1", message)
        value = next(filter(None, (re.match(pattern, message) for pattern in _VALUE)), None)
        got = f", got {value[1].strip(chr(39))!r}" if value else ""
        return f"--{name} must be {_describe(self.types[name])}{got}"


class OptionChecker(OptionParser):
    """Raises a ValueError instead of ending the program."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the error."""
        raise ValueError(self.explain(message))


def group_options(config_class: type[Any]) -> Iterator[tuple[str, list[str]]]:
    """Yields the groups of a dataclass's options: their title and their names, in order.

    Each dataclass in the inheritance is a group, titled by the first line of its docstring. The
    order is that of the fields: parents before children, the last parent first. An option whose
    default a child changes stays in its parent's group.
    """
    seen: set[str] = set()
    for kind in filter(is_dataclass, reversed(config_class.__mro__)):
        own = inspect.get_annotations(kind)
        names = [x.name for x in fields(kind) if x.name in own and x.name not in seen]
        seen.update(names)
        if names:
            title = (kind.__doc__ or kind.__name__).strip().partition("\n")[0]
            yield title.removesuffix("."), names


def _read_helps(config_class: type[Any]) -> dict[str, str | None]:
    """Returns what the docstrings say of each option; a child's text replaces its parent's."""
    docstrings = [
        docstring_parser.parse(kind.__doc__ or "") for kind in reversed(config_class.__mro__)
    ]
    return {param.arg_name: param.description for doc in docstrings for param in doc.params}


def _to_checked(kind: Any) -> Any:
    """Replaces our number types, alone or within a union or list, by those that check them."""
    origin, members = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _CHECKED.get(kind, members[0])
    if origin in (Union, UnionType):
        return reduce(or_, map(_to_checked, members))
    if origin is list:
        return list[_to_checked(members[0])]  # type: ignore[misc]
    return kind


def _describe(kind: Any) -> str:
    """Returns in words which values an option of a type takes."""
    if get_origin(kind) is Annotated:
        return str(get_args(kind)[1])
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is dict:
        return "a mapping, such as '{\"name\": 1}'"
    members = [member for member in get_args(kind) if member is not type(None)]
    if members:  # the elements of a list are checked one by one
        return " or ".join(map(_describe, members))
    return _EXPECTED.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _is_finite(value: Any) -> bool:
    """Returns whether no number in an option is NaN or infinite; jsonargparse allows both."""
    if isinstance(value, (dict, list)):
        return all(map(_is_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


class _ConfigFile(ActionConfigFile):
    """Finds a file of options, and checks it as a whole before jsonargparse reads the values."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        is_yaml = ":" in values and not os.path.exists(values)
        if os.path.isdir(values) or not (is_yaml or os.path.exists(values)):
            try:
                values = str(find_preset(values))
            except ValueError as error:
                parser.error(f"--config: {error}")
        if os.path.isfile(values):
            if parser.check_file is not None:
                with fail_in_one_line():
                    parser.check_file(Path(values))
            options = read_options(Path(values))
            unknown = unknown_options(parser.config_class, options)
            if unknown:
                recipes = find_recipes(options)
                named = describe_unknown(parser.config_class, unknown, prefix="")
                if recipes:
                    named = f"{', '.join(unknown)}; it is a file for {' or '.join(recipes)}"
                parser.error(f"{values} has options that {parser.prog} does not have: {named}")
            parser.check_values(options)
        super().__call__(parser, cfg, values, option_string)


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the line breaks of the recipes' descriptions."""
