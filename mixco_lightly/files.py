"""Files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# What a write that was killed leaves behind has a name that begins so.
TEMPORARY_PREFIX = ".partial-"


class WriteError(OSError):
    """A file that cannot be written; the message names it and the reason."""


@contextmanager
def name_write_errors(path: Path) -> Iterator[None]:
    """Raises the OSError of a write as a WriteError: a full disk's own does not say which file."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the path's place when it is written whole and is on the disk.

    A kill at any moment leaves the old file or the new one, and perhaps a temporary file beside it.

    Args:
        path: The file to replace; its folder must exist.

    Raises:
        WriteError: If the file cannot be written; the old one is then as it was.
    """
    with name_write_errors(path):
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # mkstemp's file is its owner's alone; others may read the folder too.
            os.chmod(temporary, path.parent.stat().st_mode & 0o666)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
