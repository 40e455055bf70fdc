"""Images that cannot be opened, found before a training so that it can go without them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import mixco_lightly.machine as machine
from mixco_lightly.data.decoded import FOLDER, fingerprint_images
from mixco_lightly.files import replace_file


class ImageError(OSError):
    """An image that cannot be opened; the message names its path."""


def find_broken(
    paths: Sequence[str],
    folder: str | Path,
    name: str,
    limit: int,
    loader: Callable[[str], Any],
    progress: Callable[[Sequence[Any], str], Iterable[Any]] | None = None,
) -> dict[str, str]:
    """Opens every image once and finds those that cannot be opened.

    The outcome is kept in ``folder/.decoded/name.broken.json`` with a fingerprint of the images'
    paths, sizes and times of change, so that it is found once for all runs and processes. Where
    that folder cannot be written to, the images are opened again each time.

    Args:
        paths: The images.
        folder: Where the data is.
        name: Name of this part of the data, such as "train".
        limit: How many may be broken.
        loader: Opens an image whole, or raises an ImageError.
        progress: Called with the paths and a title while they are opened; yields them, as rich's
            ``track`` does.

    Returns:
        The reason for each broken image, by its path.

    Raises:
        ImageError: If more than ``limit`` are broken; the message names the first.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly.data.broken import find_broken
        >>> from mixco_lightly.data.datasets import open_image
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.png").write_text("not an image")
        12
        >>> list(find_broken([str(folder / "a.png")], folder, "train", 1, open_image)) == [
        ...     str(folder / "a.png")
        ... ]
        True
    """
    kept = Path(folder) / FOLDER / f"{name}.broken.json"
    fingerprint = fingerprint_images(paths, Path(folder))
    broken = _read(kept, fingerprint, Path(folder))
    if broken is None:
        broken = {}
        with ThreadPool(machine.default_num_workers(None)) as pool:
            reasons = pool.imap(partial(_reason, loader), paths, chunksize=16)
            opened = progress(paths, f"opening {name}") if progress else paths
            for path, reason in zip(opened, reasons, strict=True):
                if reason:
                    broken[path] = reason
                if len(broken) > limit:
                    _refuse(broken, limit, name)
        _write(kept, fingerprint, Path(folder), broken)
    if len(broken) > limit:
        _refuse(broken, limit, name)
    return broken


def _reason(loader: Callable[[str], Any], path: str) -> str:
    """Why an image cannot be opened; empty if it can."""
    try:
        loader(path)
    except ImageError as error:
        return str(error)
    return ""


def _refuse(broken: dict[str, str], limit: int, name: str) -> None:
    raise ImageError(
        f"More than {limit} images of {name} cannot be opened, which is what --max_broken_images "
        f"allows. {next(iter(broken.values()))}"
    )


def _read(kept: Path, fingerprint: str, folder: Path) -> dict[str, str] | None:
    """What was found before, or None if nothing was or the images have changed."""
    try:
        values = json.loads(kept.read_text())
        if values["fingerprint"] == fingerprint:
            return {str(folder / path): str(reason) for path, reason in values["broken"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _write(kept: Path, fingerprint: str, folder: Path, broken: dict[str, str]) -> None:
    relative = {os.path.relpath(path, folder): reason for path, reason in broken.items()}
    try:
        kept.parent.mkdir(exist_ok=True)
        with replace_file(kept) as file:
            values = {"fingerprint": fingerprint, "broken": relative}
            file.write(f"{json.dumps(values, indent=1)}\n".encode())
    except OSError:
        pass  # found again the next time
