"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Prefix of temporary files; a killed write may leave one.
TEMPORARY_PREFIX = ".partial-"


class WriteError(OSError):
    """Raised if a file cannot be written; the message names the file and the reason."""


@contextmanager
def name_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError into a WriteError that names the file, which a full disk's does not."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces ``path`` once it is completely on the disk.

    A kill at any moment leaves the old file or the new one, and perhaps a temporary file beside it.

    Args:
        path: File to replace. Its folder must exist.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        WriteError: If the file cannot be written. The old file then stays as it was.
    """
    with name_write_errors(path):
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp lets only the owner read the file. Give it the folder's permissions.
            os.chmod(temporary, path.parent.stat().st_mode & 0o666)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that replaces ``path`` once everything in it is written.

    An error leaves the old folder as it was. A kill may leave a temporary folder beside ``path``;
    between the two renames at the end, that one holds the old folder and the new one.

    Args:
        path: Folder to replace, or to make. Its parents are created if missing.

    Yields:
        The new folder, which is empty.

    Raises:
        WriteError: If a folder cannot be written.
    """
    with name_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=path.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()  # mkdtemp lets only the owner read its folder
        yield new
        with name_write_errors(path):
            try:
                if path.exists():
                    os.replace(path, old)
                os.replace(new, path)
            except BaseException:
                if old.exists() and not path.exists():
                    os.replace(old, path)
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
