"""Finds images that cannot be opened before a training, so that it can leave them out."""

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
from mixco_lightly.data.images import ImageError
from mixco_lightly.files import replace_file


def find_broken(
    paths: Sequence[str],
    folder: str | Path,
    name: str,
    limit: int,
    loader: Callable[[str], Any],
    progress: Callable[[Sequence[Any], str], Iterable[Any]] | None = None,
    sources: Sequence[str] = (),
) -> dict[str, str]:
    """Opens every image once and returns those that cannot be opened.

    Writes the outcome to ``folder/.decoded/name.broken.json``, with a fingerprint of the images'
    paths, sizes and modification times, so that other runs and processes need not search again.
    If that folder cannot be written to, the images are opened each time.

    Args:
        paths: The images.
        folder: Folder of the data.
        name: Name of this part of the data, such as "train".
        limit: How many images may be broken.
        loader: Decodes a whole image, or raises an ImageError.
        progress: Called with the paths and a title while the images are opened; yields the paths,
            as rich's ``track`` does.
        sources: Further files that the images depend on; a change of one opens them again.

    Returns:
        The reason for each broken image, by its path.

    Raises:
        ImageError: If more than ``limit`` are broken; the message names the first.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly.data.broken import find_broken
        >>> from mixco_lightly.data.images import open_image
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.png").write_text("not an image")
        12
        >>> list(find_broken([str(folder / "a.png")], folder, "train", 1, open_image)) == [
        ...     str(folder / "a.png")
        ... ]
        True
    """
    kept = Path(folder) / FOLDER / f"{name}.broken.json"
    fingerprint = fingerprint_images([*sources, *paths], Path(folder))
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
    """Returns why an image cannot be opened; empty if it can be."""
    try:
        loader(path)
    except ImageError as error:
        return str(error)
    return ""


def _refuse(broken: dict[str, str], limit: int, name: str) -> None:
    raise ImageError(
        f"More than {limit} images of {name} cannot be opened, the limit that --max_broken_images "
        f"sets. {next(iter(broken.values()))}"
    )


def _read(kept: Path, fingerprint: str, folder: Path) -> dict[str, str] | None:
    """Returns what was found before; None if there is nothing or the images have changed."""
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
        pass  # the next run searches again
