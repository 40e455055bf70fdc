"""Folders of images: with labels where ``train/CLASS`` is beside ``test/CLASS``, else without."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

Transform = Callable[[Image.Image], Any]
Loader = Callable[[str], Image.Image]


class Splits(NamedTuple):
    """Where a folder has its images.

    Attributes:
        train: The folder of the training images.
        test: The folder of the test images; None if the images have no labels.
    """

    train: Path
    test: Path | None


def find_splits(root: str | Path) -> Splits:
    """Finds the training images of a folder, and its test images if it has labels.

    Labels are the names of the folders in ``root/train``, and only where ``root/test`` or else
    ``root/val`` has such folders too. Without test folders the names of other folders mean
    nothing: all images in ``root/train``, or without that folder all in ``root``, are training
    images without labels.

    Args:
        root: The folder.

    Returns:
        The folders of the training and the test images.

    Raises:
        FileNotFoundError: If there is a folder ``test`` or ``val``, but no ``train``.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly.data.image_folder import find_splits
        >>> root = Path(tempfile.mkdtemp())
        >>> find_splits(root) == (root, None)
        True
        >>> for name in ("train/cat", "train/dog", "val/cat", "val/dog"):
        ...     (root / name).mkdir(parents=True)
        >>> find_splits(root) == (root / "train", root / "val")
        True
    """
    root = Path(root)
    train = root / "train"
    tests = [root / "test", root / "val"]
    if train.is_dir():
        test = next((folder for folder in tests if _has_folders(folder)), None)
        return Splits(train, test if _has_folders(train) else None)
    if any(folder.is_dir() for folder in tests):
        _fail(f"There is no folder {train}", root, root)
    return Splits(root, None)


def open_split(root: Path, train: bool, transform: Transform | None, loader: Loader) -> Any:
    """Opens the training or the test images of a folder.

    Args:
        root: The folder.
        train: Whether to open the training images.
        transform: Called with each image.
        loader: Opens an image file.

    Returns:
        torchvision's ImageFolder, or :class:`UnlabelledImages` where there are no labels.

    Raises:
        FileNotFoundError: If there are no such images; the message says what is expected.
    """
    splits = find_splits(root)
    if splits.test is None:
        if train:
            return UnlabelledImages(root, transform, loader)
        _fail(f"There are no test images in {root / 'test'} nor {root / 'val'}", root, root)
    split = splits.train if train else splits.test
    try:
        return ImageFolder(str(split), transform=transform, loader=loader)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{split} has a class without images: {_describe_layout(root)}. {error}"
        ) from error


class UnlabelledImages(Dataset[tuple[Any, int]]):
    """The training images of a folder without labels.

    It takes the images of all folders below, in the order of their paths. Hidden files and folders,
    whose names start with a dot, are left out.

    Args:
        root: The folder.
        transform: Called with each image.
        loader: Opens an image file.

    Attributes:
        root: The folder that the images are in.
        classes: Empty: there are no labels.
        samples: (path, 0) of each image.
        targets: 0 for each image.

    Raises:
        FileNotFoundError: If there is no image.
    """

    def __init__(self, root: str | Path, transform: Transform | None, loader: Loader) -> None:
        folder = find_splits(root).train
        self.root = str(folder)
        self.transform = transform
        self.loader = loader
        self.classes: list[str] = []
        self.samples = [(path, 0) for path in find_images(folder)]
        self.targets = [0] * len(self.samples)
        if not self.samples:
            missing = f"no folder {folder / 'train'} and " if folder == Path(root) else ""
            _fail(f"There is {missing}no image in {folder}", Path(root), folder)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, transformed, and 0."""
        path, target = self.samples[index]
        image = self.loader(path)
        return (self.transform(image) if self.transform else image), target


def find_images(folder: str | Path, without: Path | None = None) -> Iterator[str]:
    """Finds the images in a folder and the folders below, by the ends of their names.

    Args:
        folder: The folder.
        without: A folder below that is left out.

    Yields:
        Path of each image, in the same order on every machine.

    Raises:
        OSError: If a folder below cannot be read.
    """
    seen = set()  # a link may lead back to a folder above

    def stop(error: OSError) -> NoReturn:
        raise error

    if not os.path.isdir(folder):
        return
    for path, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        facts = os.stat(path)
        place = (facts.st_dev, facts.st_ino)
        if place in seen or (without is not None and Path(path) == without):
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                yield os.path.join(path, name)


def describe_folder(path: Path) -> str:
    """What is in a folder, for an error: at most five names.

    Examples:
        >>> from pathlib import Path
        >>> from mixco_lightly.data.image_folder import describe_folder
        >>> describe_folder(Path("nowhere"))
        'nowhere does not exist'
    """
    if not path.is_dir():
        return f"{path} {'is a file' if path.exists() else 'does not exist'}"
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    if not names:
        return f"{path} is empty"
    return f"{path} has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(
        entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir()
    )


def _fail(fault: str, root: Path, found: Path) -> NoReturn:
    raise FileNotFoundError(f"{fault}: {_describe_layout(root)}. {describe_folder(found)}.")


def _describe_layout(root: Path) -> str:
    return (
        f"imagefolder expects {root / 'train'}/CLASS/*.jpg and {root / 'test'}/CLASS/*.jpg "
        f"(or {root / 'val'}), or images without labels anywhere in {root}"
    )
