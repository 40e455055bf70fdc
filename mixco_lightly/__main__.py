"""The command mixco-lightly, which runs the recipes of the installed package by name."""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

import mixco_lightly
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.recipe_files import recipes_folder


def main() -> None:
    """Runs ``mixco-lightly NAME [options]``."""
    end_in_one_line()
    name, *options = sys.argv[1:] or ["--help"]
    pages = {page.stem.replace("_", "-"): page for page in sorted(recipes_folder().glob("*.py"))}
    if name in ("-h", "--help"):
        print(_describe(pages))
        return
    if name == "--version":
        print(f"mixco-lightly {mixco_lightly.__version__}")
        return
    page = pages.get(name.replace("_", "-"))
    if page is None:
        close = difflib.get_close_matches(name.lower(), pages, n=1)
        meant = f"did you mean {close[0]}?" if close else "--help lists the commands"
        print(f"error: there is no command {name!r} ({meant})", file=sys.stderr)
        sys.exit(2)
    # Lightning starts a process for each further device with these arguments.
    sys.argv = [str(page), *options]
    runpy.run_path(str(page), run_name="__main__")


def _describe(pages: dict[str, Path]) -> str:
    """Lists the commands, each with the first line of its page's docstring."""
    lines = ["usage: mixco-lightly NAME [options]", ""]
    for name, page in pages.items():
        # Parsed and not imported, because the imports would take seconds.
        docstring = ast.get_docstring(ast.parse(page.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:<15} {docstring.partition(chr(10))[0]}")
    lines += ["", "mixco-lightly NAME --help explains a command and lists its options."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
