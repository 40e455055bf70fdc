"""Fills the templates of the pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixco_lightly.files import replace_file

if TYPE_CHECKING:
    import jinja2


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("mixco_lightly.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: Path, template: str, **content: Any) -> None:
    """Writes a page that needs no other file and no network.

    Names of classes and files are escaped. Only drawings and scripts that this room made go into
    the page as they are.

    Args:
        path: The HTML file.
        template: Name of the template.
        **content: What the template shows.

    Raises:
        WriteError: If the file cannot be written.
    """
    page = _environment().get_template(template).render(**content)
    with replace_file(path) as file:
        file.write(page.encode())


def load_map_script() -> str:
    """Returns the script that draws the embedding maps, of one megabyte."""
    from bokeh.resources import Resources

    resources = Resources(mode="inline", components=["bokeh"], log_level="warn")
    script: str = resources.render_js()
    return script


def write_or_warn(
    path: Path, what: str, write: Callable[[], None], names_path: bool = True
) -> None:
    """Writes a page and prints its path.

    What the page shows is complete without it, so an error of any kind is printed as one line that
    begins with "warning", and no older page stays.

    Args:
        path: The HTML file.
        what: What takes the time, shown meanwhile on a terminal.
        write: Writes it.
        names_path: Whether to print the path.
    """
    from rich.console import Console

    try:
        path.unlink(missing_ok=True)
        with Console().status(f"Writing {path}: {what}"):
            write()
    except Exception as error:
        reason = " ".join(str(error).split())
        print(f"warning: {path} was not written ({type(error).__name__}): {reason}", flush=True)
        return
    if names_path:
        print(f"Report: {path}", flush=True)
