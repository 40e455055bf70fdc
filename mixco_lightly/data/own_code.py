"""Functions of the user's own, named as FILE.py:FUNCTION or MODULE:FUNCTION.

To name a function is to run its file or module: it is the user's code.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_FUNCTIONS: dict[str, Callable[..., Any]] = {}  # those that were given as objects


def name_function(function: Callable[..., Any]) -> str:
    """Returns FILE.py:FUNCTION for a function, by which :func:`load_function` returns it.

    Another process can load it by this name too if it is a function of its file's top level.

    Args:
        function: A function or a class.

    Raises:
        ValueError: If it is something else, or a lambda, which has no name of its own.
    """
    is_named = inspect.isfunction(function) or inspect.isclass(function)
    if not is_named or "<lambda>" in function.__qualname__:
        raise ValueError(f"Expected a function with a name, or a class, got {function!r}.")
    name = f"{os.path.abspath(inspect.getfile(function))}:{function.__qualname__}"
    _FUNCTIONS[name] = function
    return name


def load_function(name: str) -> Callable[..., Any]:
    """Loads a function of the user's.

    A file's folder, or the current folder for a module, is appended to ``sys.path``, so that the
    code can import what is beside it. It comes last: no file there replaces an installed module.

    Args:
        name: FILE.py:FUNCTION or MODULE:FUNCTION.

    Raises:
        ValueError: If there is no such file, module or function, or if its code fails.

    Examples:
        >>> from mixco_lightly.data.own_code import load_function
        >>> load_function("os.path:basename")("a/b")
        'b'
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    place, _, function_name = name.rpartition(":")
    is_file = place.endswith(".py")
    if not (is_file or _is_dotted(place)) or not _is_dotted(function_name):
        raise ValueError(
            f"{name!r} names no function: expected FILE.py:FUNCTION or MODULE:FUNCTION, such as "
            "my_data.py:create."
        )
    module = _load_file(os.path.abspath(place)) if is_file else _import_module(place)
    function: Any = module
    for part in function_name.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        found = "has no function" if function is None else "has, but not as a function,"
        raise ValueError(f"{name}: {module.__file__ or place} {found} {function_name}.")
    loaded: Callable[..., Any] = function
    return loaded


def call_own(name: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Calls a user's function, or what it returned.

    Args:
        name: What errors call it.
        function: The function.
        *arguments: Its arguments.
        **keywords: Likewise.

    Raises:
        ValueError: If its code raises an error; the message names the line. An OSError, such as a
            FileNotFoundError, is raised as it is.
    """
    try:
        return function(*arguments, **keywords)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{name} failed{_place(error)}: {_describe(error)}") from error


def run_file(path: Path) -> ModuleType:
    """Runs a Python file and returns its module."""
    name = f"mixco_lightly_page_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def _load_file(path: str) -> ModuleType:
    if not os.path.isfile(path):
        raise ValueError(f"There is no file {path}.")
    _append_path(os.path.dirname(path))
    try:
        return run_file(Path(path))
    except Exception as error:
        raise ValueError(f"{path} cannot be loaded{_place(error)}: {_describe(error)}") from error


def _import_module(name: str) -> ModuleType:
    _append_path(os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{missing}."):
            raise ValueError(
                f"There is no module {missing}, neither installed nor in {os.getcwd()}."
            ) from error
        raise ValueError(f"{name} cannot be imported{_place(error)}: {_describe(error)}") from error


def _append_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _place(error: Exception) -> str:
    """Returns the last line in the user's file on the way to an error, if there is any."""
    ours = {__file__, importlib.__file__}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in ours and not frame.filename.startswith("<frozen")
    ]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    return f" in {frames[0].filename}, line {lines[-1]}" if lines else ""


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
