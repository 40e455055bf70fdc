"""Zip archives of data sets, checked before anything is unpacked."""

from __future__ import annotations

import shutil
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from filelock import FileLock

# Photographs and short texts: more than this is a bomb.
_MAX_RATIO = 50
# What may stand between the data of two files, in bytes: dates, owners, sizes.
_MAX_EXTRA = 256


class ArchiveError(ValueError):
    """An archive that is damaged or not the expected one; the message names it."""


class Contents(NamedTuple):
    """What an archive is expected to have.

    Attributes:
        folder: Its only folder at the top.
        marker: A file in that folder.
        max_files: Number of entries that it may have.
        max_bytes: Bytes that they may have when unpacked.
    """

    folder: str
    marker: str
    max_files: int
    max_bytes: int


def unpack_once(
    archive: Path,
    contents: Contents,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] | None = None,
) -> Path:
    """Unpacks an archive beside itself, unless its folder is there already.

    All names, kinds and sizes are checked before the first file is written. The files are unpacked
    into a temporary folder, with their checksums, and it takes its place only when it is whole.

    Args:
        archive: The zip file.
        contents: What it is expected to have.
        progress: Called with the entries and a title while they are unpacked; yields them, as
            rich's ``track`` does.

    Returns:
        The unpacked folder.

    Raises:
        FileNotFoundError: If there is neither the folder nor the archive.
        ArchiveError: If the archive is damaged, has entries that it must not have, or is too large.
        OSError: If the files cannot be written.

    Examples:
        >>> import tempfile, zipfile
        >>> from pathlib import Path
        >>> from mixco_lightly.data.archive import Contents, unpack_once
        >>> archive = Path(tempfile.mkdtemp()) / "colours.zip"
        >>> with zipfile.ZipFile(archive, "w") as file:
        ...     file.writestr("colours/names.txt", "blue red")
        >>> folder = unpack_once(archive, Contents("colours", "names.txt", 10, 1000))
        >>> (folder / "names.txt").read_text()
        'blue red'
    """
    target = archive.parent / contents.folder
    if (target / contents.marker).is_file():
        return target
    if not archive.is_file():
        raise FileNotFoundError(f"There is no archive {archive}.")
    if target.exists():
        raise ArchiveError(
            f"{archive} is not unpacked, because {target} exists and has no {contents.marker}: "
            "move it away."
        )
    temporary = archive.parent / f".{contents.folder}.partial"
    with FileLock(archive.parent / f".{contents.folder}.lock"):
        if target.exists():  # another process was first
            return target
        shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
        try:
            with zipfile.ZipFile(archive) as file:
                entries = _check(file, archive, contents)
                title = f"unpacking {archive.name}"
                for entry in progress(entries, title) if progress else entries:
                    path = temporary / entry.filename
                    if entry.is_dir():
                        path.mkdir(parents=True, exist_ok=True)
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # Read to its end: only then zipfile compares the checksum.
                    with file.open(entry) as source, path.open("xb") as copy:
                        shutil.copyfileobj(source, copy)
            (temporary / contents.folder).rename(target)
        except ArchiveError:
            raise
        # Damage shows itself in one of these, by where it is.
        except (
            *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
            *(ValueError, OverflowError, RuntimeError),
        ) as error:
            raise ArchiveError(f"{archive} is damaged or not a zip file: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check(file: zipfile.ZipFile, archive: Path, contents: Contents) -> list[zipfile.ZipInfo]:
    """The entries, all of which may be unpacked; ArchiveError if one may not."""
    entries = file.infolist()
    if len(entries) > contents.max_files:
        raise ArchiveError(
            f"{archive} has {len(entries):,} entries, more than the {contents.max_files:,} that "
            "are unpacked."
        )
    for entry in entries:
        if fault := _find_fault(entry, contents.folder):
            raise ArchiveError(f"{archive} is not unpacked: its entry {entry.filename!r} {fault}.")
    # Of two that differ only in case some file systems would keep one.
    names = Counter(entry.filename.rstrip("/").casefold() for entry in entries)
    name, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ArchiveError(f"{archive} is not unpacked: it has {name!r} {count} times.")
    files = {entry.filename for entry in entries if not entry.is_dir()}
    for entry in entries:
        if inside := files & {str(parent) for parent in PurePosixPath(entry.filename).parents}:
            raise ArchiveError(
                f"{archive} is not unpacked: {inside.pop()!r} is a file and a folder in it."
            )
    size = sum(entry.file_size for entry in entries)
    if size > contents.max_bytes:
        raise ArchiveError(
            f"{archive} is not unpacked: it says that it has {size:,} bytes, more than "
            f"{contents.max_bytes:,}."
        )
    if size > _MAX_RATIO * archive.stat().st_size:
        raise ArchiveError(
            f"{archive} is not unpacked: it would become more than {_MAX_RATIO} times as large, "
            f"{size:,} bytes."
        )
    _check_layout(file, entries, archive)
    if f"{contents.folder}/{contents.marker}".casefold() not in names:
        raise ArchiveError(
            f"{archive} is not the expected archive: it has no {contents.folder}/{contents.marker}."
        )
    return entries


def _check_layout(file: zipfile.ZipFile, entries: list[zipfile.ZipInfo], archive: Path) -> None:
    """Raises an ArchiveError if entries overlap, as in a bomb, or if there is data of none."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in ordered[1:]), file.start_dir]
    for entry, end in zip(ordered, ends, strict=True):
        data = entry.header_offset + 30 + len(entry.orig_filename.encode()) + entry.compress_size
        if not data <= end <= data + _MAX_EXTRA:
            raise ArchiveError(
                f"{archive} is damaged: the data of its entry {entry.filename!r} does not end "
                "where that of the next begins."
            )


def _find_fault(entry: zipfile.ZipInfo, folder: str) -> str:
    """Why an entry must not be unpacked; empty if it may."""
    # The name as it was written: zipfile cuts it at a zero byte and turns separators round.
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    if name != entry.filename or not name.isprintable() or "\\" in name or ":" in name:
        return "has characters that no name here has"
    if any(part in ("", ".", "..") for part in parts):
        return "leads out of the folder, or about in it"
    if parts[0] != folder:
        return f"is not in {folder}"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
        return "is a link or another special file"
    if entry.is_dir() and entry.file_size:
        return "is a folder with content"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is neither stored nor deflated"
    if entry.header_offset < 0:
        return "begins before the archive"
    return ""
