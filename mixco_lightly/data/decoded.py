"""Decoded images, kept beside their folder: decoded once instead of in every epoch."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mixco_lightly.files import hash_file

# Larger datasets are not small; their images have different sizes anyway.
_MAX_BYTES = 8 * 2**30
FOLDER = ".decoded"


class DecodedImages(Dataset[tuple[Any, int]]):
    """Images of one size in a memory-mapped array, with their targets.

    The processes of a machine share the mapped pages, so each image is in memory once.

    Args:
        path: File of :func:`decode_once`: uint8 of shape (N, H, W, 3).
        targets: Target of each image.
        classes: Class names.
        transform: Called with each PIL image.

    Attributes:
        images: The array, read-only.
    """

    def __init__(
        self,
        path: str | Path,
        targets: Sequence[int],
        classes: list[str],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.path = str(path)
        self.images = np.load(self.path, mmap_mode="r", allow_pickle=False)
        self.targets = list(targets)
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, transformed, and its target."""
        image = Image.fromarray(self.images[index])
        return (self.transform(image) if self.transform else image), self.targets[index]

    def __getstate__(self) -> dict[str, Any]:
        """Without the pixels: a worker process maps the file again."""
        return {name: value for name, value in self.__dict__.items() if name != "images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the file again."""
        self.__dict__.update(state)
        self.images = np.load(self.path, mmap_mode="r", allow_pickle=False)


def decode_once(
    samples: Sequence[tuple[str, int]],
    classes: list[str],
    folder: str | Path,
    name: str,
    transform: Callable[[Image.Image], Any] | None = None,
    loader: Callable[[str], Image.Image] = Image.open,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] | None = None,
) -> DecodedImages | None:
    """Opens the decoded images of a folder, and decodes them first if that was not done.

    They are in ``folder/.decoded/name.npy``. Beside it ``name.json`` has a fingerprint of the
    images' paths, sizes and times of change, and the array's SHA-256. Where one of the two does not
    fit any more, the images are decoded again.

    Args:
        samples: Path and target of each image.
        classes: Class names.
        folder: Where the data is.
        name: Name of this part of the data, such as "train".
        transform: Called with each PIL image.
        loader: Opens an image as RGB.
        progress: Called with the samples and a title while they are decoded; yields them, as
            rich's ``track`` does.

    Returns:
        The images, or None where they do not go into one array: they have different sizes, or take
        more than 8 GiB. If the folder cannot be written to there is a warning, and None too.

    Raises:
        OSError: If an image cannot be opened, as ``loader`` says.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from mixco_lightly.data.decoded import decode_once
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 4), "red").save(folder / "a.png")
        >>> images = decode_once([(str(folder / "a.png"), 0)], ["red"], folder, "train")
        >>> images.images.shape, images[0][1]
        ((1, 4, 4, 3), 0)
    """
    targets = [target for _, target in samples]
    array = Path(folder) / FOLDER / f"{name}.npy"
    facts = array.with_suffix(".json")
    fingerprint = fingerprint_images([path for path, _ in samples], Path(folder))
    if not _is_current(array, facts, fingerprint):
        first = np.asarray(loader(samples[0][0]))
        shape = (len(samples), *first.shape)
        if len(samples) * first.nbytes > _MAX_BYTES:
            return None
        try:
            array.parent.mkdir(exist_ok=True)
            with _replacing(array) as temporary:
                # Written, not mapped: a full disk is then an error, and not the process's end.
                with open(temporary, "wb") as file:
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for path, _ in progress(samples, f"decoding {name}") if progress else samples:
                        try:
                            image = np.asarray(loader(path))
                        except OSError as error:
                            raise _ImageFault(error) from error
                        if image.shape != first.shape:
                            raise _DifferentSizes
                        file.write(image.tobytes())
                checksum = hash_file(Path(temporary))
            with _replacing(facts) as temporary:
                values = {"fingerprint": fingerprint, "sha256": checksum}
                Path(temporary).write_text(json.dumps(values) + "\n")
        except _DifferentSizes:
            return None
        except _ImageFault as fault:
            raise fault.error from None
        except OSError as error:
            warnings.warn(
                f"The decoded images cannot be kept in {array.parent} ({error}): the images are "
                "decoded in every epoch.",
                stacklevel=2,
            )
            return None
    return DecodedImages(array, targets, classes, transform)


class _DifferentSizes(Exception):
    """The images do not go into one array."""


class _ImageFault(Exception):
    """An image's own error, which is not one of the folder for the decoded images."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def fingerprint_images(paths: Sequence[str], folder: Path) -> str:
    """A hash of images' paths, sizes and times of change; of one that is missing, the path."""
    digest = hashlib.sha256()
    for path in paths:
        entry: tuple[str | int, ...] = (os.path.relpath(path, folder),)
        with suppress(OSError):
            facts = os.stat(path)
            entry = (*entry, facts.st_size, facts.st_mtime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def _is_current(array: Path, facts: Path, fingerprint: str) -> bool:
    """Whether the array is the one that the facts, and so this package, say."""
    try:
        values = json.loads(facts.read_text())
        # The array is not opened before: NumPy reads a damaged header as Python's source, and what
        # comes of that can be any error.
        return (
            isinstance(values, dict)
            and values.get("fingerprint") == fingerprint
            and values.get("sha256") == hash_file(array)
        )
    except (OSError, ValueError):
        return False


@contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """A temporary file in the same folder, which takes the path's place when it is whole."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield temporary
        # mkstemp's file is its owner's alone; others may read the folder too.
        os.chmod(temporary, path.parent.stat().st_mode & 0o666)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
