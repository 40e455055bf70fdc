"""Decodes the images of a folder once, instead of in every epoch, and keeps them there."""

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
import numpy.typing as npt
from PIL import Image

from mixco_lightly.data.images import ImageArray, open_image
from mixco_lightly.files import hash_file

# The images of larger datasets usually have different sizes anyway.
_MAX_BYTES = 8 * 2**30
FOLDER = ".decoded"


class DecodedImages(ImageArray):
    """Images of one size in a memory-mapped array, with their targets.

    The processes of a machine share the mapped pages, so each image is in memory once.

    Args:
        path: File of :func:`decode_once`: uint8 of shape (N, H, W, 3).
        targets: Target of each image.
        classes: Class names.
        transform: Called with each PIL image.

    Attributes:
        pixels: The array, read-only.
        broken: The reason for each image that was left out because it is broken, by its path.
    """

    def __init__(
        self,
        path: str | Path,
        targets: Sequence[int],
        classes: list[str],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        self.path = str(path)
        super().__init__(_map(self.path), targets, classes, transform)
        self.broken: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the pixels: a worker process maps the file again."""
        return {name: value for name, value in self.__dict__.items() if name != "pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the file again."""
        self.__dict__.update(state)
        self.pixels = _map(self.path)


def _map(path: str) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    return pixels


def decode_once(
    samples: Sequence[tuple[str, int]],
    classes: list[str],
    folder: str | Path,
    name: str,
    transform: Callable[[Image.Image], Any] | None = None,
    loader: Callable[[str], Image.Image] = open_image,
    progress: Callable[[Sequence[Any], str], Iterable[Any]] | None = None,
    sources: Sequence[str] = (),
) -> DecodedImages | None:
    """Opens the decoded images of a folder; decodes them first if necessary.

    The pixels lie in ``folder/.decoded/name.npy``. Beside them ``name.json`` has the array's
    SHA-256 and a fingerprint of the images' paths, sizes and modification times. If one of the two
    does not match, the images are decoded again.

    Args:
        samples: Path and target of each image.
        classes: Class names.
        folder: Folder of the data.
        name: Name of this part of the data, such as "train".
        transform: Called with each PIL image.
        loader: Opens an image as RGB.
        progress: Called with the samples and a title while they are decoded; yields the samples,
            as rich's ``track`` does.
        sources: Further files that the images depend on; a change of one decodes them again.

    Returns:
        The images, or None if they do not fit into one array, because they have different sizes or
        need more than 8 GiB. None too, with a warning, if the folder cannot be written to.

    Raises:
        OSError: If ``loader`` cannot open an image.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from mixco_lightly.data.decoded import decode_once
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (4, 4), "red").save(folder / "a.png")
        >>> images = decode_once([(str(folder / "a.png"), 0)], ["red"], folder, "train")
        >>> images.pixels.shape, images[0][1]
        ((1, 4, 4, 3), 0)
    """
    targets = [target for _, target in samples]
    array = Path(folder) / FOLDER / f"{name}.npy"
    facts = array.with_suffix(".json")
    fingerprint = fingerprint_images([*sources, *(path for path, _ in samples)], Path(folder))
    if not _is_current(array, facts, fingerprint):
        first = np.asarray(loader(samples[0][0]))
        shape = (len(samples), *first.shape)
        if len(samples) * first.nbytes > _MAX_BYTES:
            return None
        try:
            array.parent.mkdir(exist_ok=True)
            with _replacing(array) as temporary:
                # Written and not mapped, because a full disk kills a process that writes to a map.
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
            with suppress(OSError):  # it has other files
                array.parent.rmdir()
            return None
        except _ImageFault as fault:
            raise fault.error from None
        except OSError as error:
            warnings.warn(
                f"The decoded images cannot be kept in {array.parent} ({error}). The images are "
                "decoded in every epoch instead.",
                stacklevel=2,
            )
            return None
    return DecodedImages(array, targets, classes, transform)


class _DifferentSizes(Exception):
    """The images do not fit into one array."""


class _ImageFault(Exception):
    """An error of an image, as opposed to one of the folder for the decoded images."""

    def __init__(self, error: OSError) -> None:
        self.error = error


def fingerprint_images(paths: Sequence[str], folder: Path) -> str:
    """Hashes the paths, sizes and modification times of images; a missing one has its path only."""
    digest = hashlib.sha256()
    for path in paths:
        entry: tuple[str | int, ...] = (os.path.relpath(path, folder),)
        with suppress(OSError):
            facts = os.stat(path)
            entry = (*entry, facts.st_size, facts.st_mtime_ns)
        digest.update(repr(entry).encode())
    return digest.hexdigest()


def _is_current(array: Path, facts: Path, fingerprint: str) -> bool:
    """Returns whether the array and the images are those that the facts describe."""
    try:
        values = json.loads(facts.read_text())
        # Checked before NumPy opens the array: it parses a damaged header as Python source, which
        # can raise any error.
        return (
            isinstance(values, dict)
            and values.get("fingerprint") == fingerprint
            and values.get("sha256") == hash_file(array)
        )
    except (OSError, ValueError):
        return False


@contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """Yields a temporary file in the same folder, which replaces the path once it is complete."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield temporary
        # mkstemp lets only the owner read its file; others may be able to read the folder.
        os.chmod(temporary, path.parent.stat().st_mode & 0o666)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
