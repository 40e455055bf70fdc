"""Packs exported backbones for a release: archives, checksums, and an index with their figures."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixco_lightly.backbones.description import read_config
from mixco_lightly.backbones.model_card import (
    create_model_card,
    explain_protocol,
    list_figures,
    write_options,
)
from mixco_lightly.backbones.public_copy import copy_for_others
from mixco_lightly.files import TEMPORARY_PREFIX, hash_file, replace_file, replace_folder

CHECKSUMS_NAME = "SHA256SUMS"
INDEX_NAME = "index.md"
CARD_NAME = "README.md"
OPTIONS_NAME = "options.yaml"
_SUFFIX = ".tar"
# GitHub replaces other characters in the names of a release's files.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# 1980, because tar warns of files from 1970.
_TIME = 315_532_800


def build_release(
    directories: Sequence[str | Path],
    output_dir: str | Path,
    *,
    names: Sequence[str] | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Packs exported backbones as the files of a release.

    Each export becomes an archive ``NAME.tar`` with the folder ``NAME``: the files of
    :func:`mixco_lightly.export_backbone`, the model card ``README.md``, and ``options.yaml``, the
    options of the run without the paths of your machine. Exports are loaded and written again
    first, which checks them and brings those of earlier versions up to date. ``SHA256SUMS`` is for
    ``sha256sum -c``, and ``index.md`` has a table of all.

    The same exports give the same bytes: times, modes, owners and order in the archives are fixed,
    and they are not compressed, because compressors differ and weights hardly shrink.

    Args:
        directories: Where the backbones were exported, or output folders of runs.
        output_dir: Folder to make. It is written whole or not at all.
        names: Name of each archive, of letters, digits, "-", "_" and ".". Default: the folders'
            names.
        license: Licence of the weights in the Hub's spelling, such as "cc-by-4.0", for the cards.
            Default: the cards state none.
        overwrite: Whether to replace an earlier release in ``output_dir``.

    Returns:
        The archives, in the order of the directories.

    Raises:
        ValueError: If a name is invalid or given twice, or if an export is damaged.
        FileNotFoundError: If a directory has no export.
        FileExistsError: If ``output_dir`` is not empty and ``overwrite`` is false, or if it has
            files that are not of a release.
        WriteError: If a file cannot be written.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly import create_backbone, export_backbone
        >>> from mixco_lightly.backbones import build_release
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = export_backbone(create_backbone("test_vit", image_size=32), f"{folder}/tiny")
        ...     _ = build_release([run], f"{folder}/release")
        ...     sorted(path.name for path in Path(folder, "release").iterdir())
        ['SHA256SUMS', 'index.md', 'tiny.tar']
    """
    names = _check_names(directories, names)
    output_dir = Path(output_dir)
    _check_output(output_dir, overwrite)
    rows = []
    with replace_folder(output_dir) as release:
        for name, directory in zip(names, directories, strict=True):
            with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=release) as temporary:
                folder = copy_for_others(directory, temporary)
                config = read_config(folder)
                card = create_model_card(folder, license=license)
                (folder / CARD_NAME).write_bytes(card.encode())
                options = write_options(config["training"])
                if options:
                    (folder / OPTIONS_NAME).write_bytes(options.encode())
                archive = release / f"{name}{_SUFFIX}"
                _write_archive(archive, folder, name)
            rows.append(_describe_row(name, archive.stat().st_size, config))
        _write_text(release / INDEX_NAME, _write_index(names, rows))
        files = [*(f"{name}{_SUFFIX}" for name in names), INDEX_NAME]
        sums = [f"{hash_file(release / file)}  {file}\n" for file in sorted(files)]
        _write_text(release / CHECKSUMS_NAME, "".join(sums))
    return [output_dir / f"{name}{_SUFFIX}" for name in names]


def _check_names(directories: Sequence[str | Path], names: Sequence[str] | None) -> list[str]:
    """Returns the name of each archive; raises ValueError if one cannot be used."""
    if not directories:
        raise ValueError("Give folders of runs or exports (--backbone_dir), got none.")
    if names is None:
        names = [Path(directory).resolve().name for directory in directories]
    if len(names) != len(directories):
        raise ValueError(f"Give each of the {len(directories)} folders a name, got {len(names)}.")
    folders: dict[str, str | Path] = {}
    for name, directory in zip(names, directories, strict=True):
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{directory} needs another name than {name!r} (--names): letters, digits, '-', "
                "'_' and '.', beginning with a letter or digit."
            )
        key = name.casefold()  # file systems may not tell upper from lower case
        if key in folders:
            raise ValueError(
                f"{folders[key]} and {directory} would both be {name}{_SUFFIX}: give other names "
                "(--names)."
            )
        folders[key] = directory
    return list(names)


def _check_output(output_dir: Path, overwrite: bool) -> None:
    """Raises FileExistsError if the folder has something that must not be replaced."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return
    if not output_dir.is_dir():
        raise FileExistsError(f"{output_dir} is not a folder: choose another.")
    if not overwrite:
        raise FileExistsError(
            f"{output_dir} is not empty: add --overwrite to replace the release in it, or choose "
            "another folder."
        )
    sums = output_dir / CHECKSUMS_NAME
    lines = sums.read_text(errors="replace").splitlines() if sums.is_file() else []
    released = {CHECKSUMS_NAME, *(line.partition("  ")[2] for line in lines)}
    others = sorted({path.name for path in output_dir.iterdir()} - released)
    if others:
        raise FileExistsError(
            f"{output_dir} has files that are not of a release ({', '.join(others[:3])}): choose "
            "another folder."
        )


def _write_archive(path: Path, folder: Path, name: str) -> None:
    """Packs the files of a folder as a folder of this name."""
    with replace_file(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for source in sorted(folder.iterdir()):
            entry = tarfile.TarInfo(f"{name}/{source.name}")  # of nobody, for all to read
            entry.size, entry.mtime = source.stat().st_size, _TIME
            with source.open("rb") as content:
                archive.addfile(entry, content)


def _write_text(path: Path, text: str) -> None:
    with replace_file(path) as file:
        file.write(text.encode())


def _write_index(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes the index, which is a release's text as well."""
    head = ["name", "what", "on which images", "figures, %", "trained by"]
    lines = ["# Weights", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    name = names[0]
    lines += [
        "",
        f"Each `NAME{_SUFFIX}` has a folder `NAME` with the weights and the model card "
        f"`{CARD_NAME}`. Check all files, unpack one and load it:",
        "",
        "```sh",
        f"sha256sum -c {CHECKSUMS_NAME}",
        f"tar -xf {name}{_SUFFIX}",
        f"""python -c "from mixco_lightly import load_backbone; print(load_backbone('{name}'))\"""",
        "```",
    ]
    return "\n".join(lines) + "\n"


def _describe_row(name: str, size: int, config: Mapping[str, Any]) -> list[str]:
    """Returns the cells of a backbone."""
    training, metrics = config["training"], config["metrics"]
    method, side = training.get("method"), config["image_size"]
    loads = "not in timm alone" if config["differs_from_timm"] else "also in timm"
    figures = [
        f"{protocol}: {trained} (random initialisation {random})"
        for protocol, trained, random in list_figures(metrics)
    ]
    return [
        f"`{name}`",
        f"timm's `{config['name']}`"
        + (f" by `{method}`" if method else "")
        + f", {config['feature_dim']} features, {size / 1e6:.1f} MB, loads {loads}",
        (f"`{training['dataset']}`, " if "dataset" in training else "")
        + f"{side}x{side} pixels, {config['in_chans']} channels",
        "; ".join([*figures, explain_protocol(training, metrics)]) if figures else "none recorded",
        f"`mixco-lightly {method} --config {name}/{OPTIONS_NAME}`" if method else "not recorded",
    ]
