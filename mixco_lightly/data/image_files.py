"""Images that are read from files."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from mixco_lightly.data.broken import find_broken
from mixco_lightly.data.decoded import DecodedImages, decode_once
from mixco_lightly.data.images import ImageError, Transform, open_image


class ImageFiles(Dataset[tuple[Any, int]]):
    """Images that are opened when they are read.

    Args:
        samples: (path, target) of each image.
        classes: Class names; empty if the images have no labels.
        folder: The folder that keeps what is found out about the images, in ``.decoded``.
        split: Name of this part of the data, such as "train".
        broken: The reason for each image that was left out because it is broken, by its path.
        transform: Called with each PIL image.
        loader: Opens an image by its path in ``samples``, or raises an ImageError.
        sources: The files that the images are in, if their paths are not those of files.

    Attributes:
        targets: Target of each image.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        classes: list[str],
        folder: Path,
        split: str,
        broken: dict[str, str] | None = None,
        transform: Transform | None = None,
        loader: Callable[[str], Image.Image] = open_image,
        sources: Sequence[str] = (),
    ) -> None:
        self.samples = list(samples)
        self.targets = [target for _, target in self.samples]
        self.classes = classes
        self.folder = folder
        self.split = split
        self.broken = broken or {}
        self.transform = transform
        self.loader = loader
        self.sources = sources

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Opens an image; returns it transformed, and its target."""
        path, target = self.samples[index]
        image = self.loader(path)
        return (self.transform(image) if self.transform else image), target


def prepare_files(
    images: ImageFiles, keep_decoded: bool, max_broken_images: int
) -> ImageFiles | DecodedImages:
    """Leaves out broken images and decodes the others once, as far as the user wants it.

    Args:
        images: The images, without a transform.
        keep_decoded: Whether to decode the images into one array beside their folder; see
            :func:`~mixco_lightly.data.decoded.decode_once`.
        max_broken_images: How many images may be left out because they are broken; see
            :func:`~mixco_lightly.data.broken.find_broken`. With 0 the images are not checked.

    Returns:
        The decoded images, or files where the images do not fit into one array.

    Raises:
        ImageError: If more images are broken, or all images of a class are.
    """
    if max_broken_images > 0:
        images = _leave_out_broken(images, max_broken_images)
    if keep_decoded:
        decoded = decode_once(
            images.samples,
            images.classes,
            images.folder,
            images.split,
            loader=images.loader,
            progress=show_progress,
            sources=images.sources,
        )
        if decoded is not None:
            decoded.broken = images.broken
            return decoded
    return images


def _leave_out_broken(images: ImageFiles, limit: int) -> ImageFiles:
    paths = [path for path, _ in images.samples]
    broken = find_broken(
        paths, images.folder, images.split, limit, images.loader, show_progress, images.sources
    )
    result = copy.copy(images)
    result.broken = broken
    result.samples = [sample for sample in images.samples if sample[0] not in broken]
    result.targets = [target for _, target in result.samples]
    if not result.samples:
        raise ImageError(f"Every image in {images.folder} is broken. {next(iter(broken.values()))}")
    if empty := set(images.targets if images.classes else []) - set(result.targets):
        raise ImageError(
            f"Every image of {images.classes[min(empty)]} in {images.split} is broken. "
            f"{next(iter(broken.values()))}"
        )
    return result


def show_progress(items: Sequence[Any], title: str) -> Iterable[Any]:
    """Yields the items, with a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    # rich 13.0 prints an empty line even for track(disable=True).
    return track(items, title, console=console) if console.is_terminal else items


def find_images(folder: str | Path, without: Sequence[Path] = ()) -> Iterator[str]:
    """Finds the images in a folder and its subfolders by the extensions of their names.

    Args:
        folder: The folder.
        without: Subfolders to skip.

    Yields:
        Path of each image, in the same order on every machine.

    Raises:
        OSError: If a subfolder cannot be read.
    """
    seen = set()  # a link may lead back to a folder above

    def stop(error: OSError) -> NoReturn:
        raise error

    if not os.path.isdir(folder):
        return
    for path, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        facts = os.stat(path)
        place = (facts.st_dev, facts.st_ino)
        if place in seen or Path(path) in without:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                yield os.path.join(path, name)


def describe_folder(path: Path) -> str:
    """Describes what is in a folder, for an error; names five entries at most.

    Examples:
        >>> from pathlib import Path
        >>> from mixco_lightly.data.image_files import describe_folder
        >>> describe_folder(Path("nowhere"))
        'nowhere does not exist'
    """
    if not path.is_dir():
        return f"{path} {'is a file' if path.exists() else 'does not exist'}"
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    if not names:
        return f"{path} is empty"
    return f"{path} has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
