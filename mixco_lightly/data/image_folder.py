"""Folders of images: labelled if ``train/CLASS`` lies beside ``test/CLASS``, else unlabelled."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, NoReturn

from torchvision.datasets import ImageFolder

from mixco_lightly.data.image_files import ImageFiles, describe_folder, find_images
from mixco_lightly.data.images import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec, ImageFacts


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

    The folders in ``root/train`` are classes only if ``root/test``, or else ``root/val``, has
    folders too. Otherwise the names of folders mean nothing: all images in ``root/train``, or in
    ``root`` if there is no such folder, are training images without labels.

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


def open_image_folder(root: Path, *, train: bool, download: bool = False) -> ImageFiles:
    """Opens the training or the test images of a folder.

    Unlabelled images are all images in the folder and its subfolders, except for hidden ones, whose
    path has a name that starts with a dot. Their target is 0, and they have no classes.

    Args:
        root: The folder; :func:`find_splits` finds out whether its images have labels.
        train: Whether to open the training images or the test images.
        download: Not used.

    Raises:
        FileNotFoundError: If there are no such images; the message says what is expected.
    """
    splits = find_splits(root)
    if splits.test is None:
        if not train:
            _fail(f"There are no test images in {root / 'test'} or {root / 'val'}", root, root)
        return _open_unlabelled(root, splits.train)
    folder = splits.train if train else splits.test
    try:
        images = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} has a class without images: {_describe_layout(root)}. {error}"
        ) from error
    return ImageFiles(images.samples, images.classes, root, folder.name)


def _open_unlabelled(root: Path, folder: Path) -> ImageFiles:
    samples = [(path, 0) for path in find_images(folder)]
    if not samples:
        missing = f"no folder {root / 'train'} and " if folder == root else ""
        _fail(f"There is {missing}no image in {folder}", root, folder)
    return ImageFiles(samples, [], root, "images" if folder == root else folder.name)


def _has_labels(root: Path) -> bool:
    return find_splits(root).test is not None


def _find_unlabelled(root: Path) -> Path:
    return find_splits(root).train


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


IMAGE_FOLDER = DatasetSpec(
    "imagefolder",
    ImageFacts(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    open_image_folder,
    has_labels=_has_labels,
    labels="train/CLASS/*.jpg beside test/CLASS/*.jpg or val/CLASS/*.jpg",
    find_unlabelled=_find_unlabelled,
    is_generic=True,
)
