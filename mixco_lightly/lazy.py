"""Exports of a package whose modules load on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy_exports(
    package: str, **modules: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns a package's ``__getattr__``, ``__dir__`` and ``__all__``.

    The first use of a name imports its module. So ``import mixco_lightly.training`` takes
    milliseconds, and ``--help`` does not wait for torch.

    Args:
        package: The package's ``__name__``.
        **modules: For each module of the package, the names it exports, separated by spaces. A name
            must not be that of a module: importing the module would replace it.

    Examples:
        >>> from mixco_lightly.lazy import lazy_exports
        >>> load, names, exported = lazy_exports("mixco_lightly", files="replace_file WriteError")
        >>> exported
        ['WriteError', 'replace_file']
        >>> load("replace_file").__module__
        'mixco_lightly.files'
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return load, lambda: sorted(homes), sorted(homes)
