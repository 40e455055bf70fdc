"""Unpacks zip archives of datasets, after checking every entry."""

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

# Photographs and short texts never compress this well; a zip bomb does.
_MAX_RATIO = 50
# Bytes allowed between the data of two files, for dates, owners and sizes.
_MAX_EXTRA = 256


class ArchiveError(ValueError):
    """Raised for an archive that is damaged or not the expected one; the message names it."""


class Contents(NamedTuple):
    """What an archive is expected to contain.

    Attributes:
        folder: The only folder at its top level.
        marker: A file in that folder.
        max_files: Largest number of entries.
        max_bytes: Largest total size of the unpacked files.
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

    Checks the names, kinds and sizes of all entries before it writes the first file. Unpacks into a
    temporary folder, checks each file's checksum, and renames the folder when it is complete.

    Args:
        archive: The zip file.
        contents: What the archive is expected to contain.
        progress: Called with the entries and a title while they are unpacked; yields the entries,
            as rich's ``track`` does.

    Returns:
        The unpacked folder.

    Raises:
        FileNotFoundError: If there is neither the folder nor the archive.
        ArchiveError: If the archive is damaged or too large, or has an entry that is not allowed.
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
            f"{archive} cannot be unpacked: {target} exists and has no {contents.marker}. Move "
            "that folder away."
        )
    temporary = archive.parent / f".{contents.folder}.partial"
    with FileLock(archive.parent / f".{contents.folder}.lock"):
        if target.exists():  # another process has unpacked it
            return target
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
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
                    # zipfile compares the checksum only when a file is read to its end.
                    with file.open(entry) as source, path.open("xb") as copy:
                        shutil.copyfileobj(source, copy)
            (temporary / contents.folder).rename(target)
        except ArchiveError:
            raise
        # Which of these a damaged archive raises depends on where it is damaged.
        except (
            zipfile.BadZipFile,
            zlib.error,
            struct.error,
            EOFError,
            ValueError,
            OverflowError,
            RuntimeError,
        ) as error:
            raise ArchiveError(f"{archive} is damaged or not a zip file: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check(file: zipfile.ZipFile, archive: Path, contents: Contents) -> list[zipfile.ZipInfo]:
    """Returns the entries; raises an ArchiveError if one of them is not allowed."""
    entries = file.infolist()
    if len(entries) > contents.max_files:
        raise ArchiveError(
            f"{archive} is not unpacked: it has {len(entries):,} entries, more than the limit of "
            f"{contents.max_files:,}."
        )
    for entry in entries:
        if fault := _find_fault(entry, contents.folder):
            raise ArchiveError(f"{archive} is not unpacked: its entry {entry.filename!r} {fault}.")
    # Some file systems would keep only one of two names that differ in case.
    names = Counter(entry.filename.rstrip("/").casefold() for entry in entries)
    name, count = names.most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise ArchiveError(f"{archive} is not unpacked: it has {count} entries {name!r}.")
    files = {entry.filename for entry in entries if not entry.is_dir()}
    for entry in entries:
        if inside := files & {str(parent) for parent in PurePosixPath(entry.filename).parents}:
            raise ArchiveError(
                f"{archive} is not unpacked: {inside.pop()!r} is both a file and a folder in it."
            )
    size = sum(entry.file_size for entry in entries)
    if size > contents.max_bytes:
        raise ArchiveError(
            f"{archive} is not unpacked: its files have {size:,} bytes, more than the limit of "
            f"{contents.max_bytes:,}."
        )
    if size > _MAX_RATIO * archive.stat().st_size:
        raise ArchiveError(
            f"{archive} is not unpacked: its files are more than {_MAX_RATIO} times as large as "
            f"the archive, {size:,} bytes."
        )
    _check_layout(file, entries, archive)
    if f"{contents.folder}/{contents.marker}".casefold() not in names:
        raise ArchiveError(
            f"{archive} is not the expected archive: it has no {contents.folder}/{contents.marker}."
        )
    return entries


def _check_layout(file: zipfile.ZipFile, entries: list[zipfile.ZipInfo], archive: Path) -> None:
    """Raises an ArchiveError if entries overlap, as in a bomb, or leave gaps between them."""
    ordered = sorted(entries, key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in ordered[1:]), file.start_dir]
    for entry, end in zip(ordered, ends, strict=True):
        data = entry.header_offset + 30 + len(entry.orig_filename.encode()) + entry.compress_size
        if not data <= end <= data + _MAX_EXTRA:
            raise ArchiveError(
                f"{archive} is damaged: the data of its entry {entry.filename!r} does not end "
                "where the next entry begins."
            )


def _find_fault(entry: zipfile.ZipInfo, folder: str) -> str:
    """Returns why an entry is not allowed; empty if it is."""
    # The name as it was written: zipfile cuts it at a zero byte and replaces separators.
    name = entry.orig_filename
    parts = name.removesuffix("/").split("/")
    if name != entry.filename or not name.isprintable() or "\\" in name or ":" in name:
        return "has characters that are not allowed in a name"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, '.' or '..' in its path"
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
        return "starts before the archive does"
    return ""
