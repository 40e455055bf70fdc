"""The datasets that recipes name: where their images are, their classes, size and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from mixco_lightly.data.archive import unpack_once
from mixco_lightly.data.broken import ImageError, find_broken
from mixco_lightly.data.decoded import DecodedImages, decode_once
from mixco_lightly.data.image_folder import (
    UnlabelledImages,
    describe_folder,
    find_images,
    find_splits,
    open_split,
)
from mixco_lightly.data.tiny_imagenet import TINY_IMAGENET, TinyImageNet

Transform = Callable[[Image.Image], Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DatasetInfo(NamedTuple):
    """What a dataset's transforms and backbone need to know.

    Attributes:
        image_size: Height and width that its images are used at by default, in pixels; None
            where the user must say it.
        mean: Mean of each channel, images in [0, 1].
        std: Standard deviation of each channel.
    """

    image_size: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# CIFAR's statistics are those of SupContrast and of SelfCon; the authors of MixCo use ImageNet's
# for TinyImageNet.
DATASETS = {
    "digits": DatasetInfo(32, (0.305, 0.305, 0.305), (0.376, 0.376, 0.376)),
    "cifar10": DatasetInfo(32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": DatasetInfo(32, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny-imagenet": DatasetInfo(64, IMAGENET_MEAN, IMAGENET_STD),
    "imagefolder": DatasetInfo(None, IMAGENET_MEAN, IMAGENET_STD),
}

_CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


class LabelledImages(Protocol):
    """A map-style dataset of (image, target) with its targets and class names.

    Images without labels have the target 0 and no class names.
    """

    classes: list[str]
    targets: list[int]
    transform: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


def open_image(path: str | Path) -> Image.Image:
    """Opens an image as RGB.

    Of an animation it is the first frame; transparency is left out.

    Args:
        path: The image's file.

    Returns:
        The decoded image in RGB.

    Raises:
        ImageError: If the file is not an image that Pillow can decode whole, or if it has more
            than ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, of which Pillow itself only warns.
    """
    limit = Image.MAX_IMAGE_PIXELS
    too_large = f"it has more than {limit or 0:,} pixels, the limit PIL.Image.MAX_IMAGE_PIXELS"
    try:
        with Image.open(path) as image:
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageError(f"The image {path} cannot be opened: {too_large}.") from error
    # Pillow raises errors of nearly any type for broken files.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"The image {path} cannot be opened: {reason}") from error


class Digits(Dataset[tuple[Any, int]]):
    """scikit-learn's embedded 8x8 images of handwritten digits.

    1,797 images in ten classes. scikit-learn names no split: here every fourth image is a test
    image, which gives 1,348 for training and 449 for testing.

    Args:
        train: Whether to take the training images.
        transform: Called with each image.
    """

    def __init__(self, train: bool, transform: Transform | None = None) -> None:
        from sklearn.datasets import load_digits

        images, targets = load_digits(return_X_y=True)
        chosen = (np.arange(len(images)) % 4 != 3) == train
        # Grey values are 0 to 16.
        self.images = (images[chosen].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        self.targets = [int(target) for target in targets[chosen]]
        self.classes = [str(digit) for digit in range(10)]
        self.transform = transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, transformed, and its digit."""
        image = Image.fromarray(self.images[index]).convert("RGB")
        return (self.transform(image) if self.transform else image), self.targets[index]


def create_dataset(
    name: str,
    data_dir: str | Path,
    train: bool,
    transform: Transform | None = None,
    download: bool = False,
    keep_decoded: bool = False,
    max_broken_images: int = 0,
) -> LabelledImages:
    """Opens a dataset by name.

    Args:
        name: "digits" (embedded in scikit-learn), "cifar10" or "cifar100" (torchvision's
            layout), "tiny-imagenet" (the official folder, the folder it lies in, or the official
            archive, which is unpacked beside itself), or "imagefolder"
            (``data_dir/train/CLASS/*`` and ``data_dir/test`` or ``data_dir/val``; any other folder
            of images has training images without labels, see
            :func:`mixco_lightly.data.image_folder.find_splits`).
        data_dir: Folder of the data; not used for digits.
        train: Whether to open the training images or the test images.
        transform: Called with each PIL image.
        download: Whether to download CIFAR if it is missing.
        keep_decoded: Whether to decode the images of a folder once and keep them beside it; see
            :func:`mixco_lightly.data.decoded.decode_once`. (Digits and CIFAR are in memory.)
        max_broken_images: How many images of a folder may be left out because they cannot be
            opened. If it is not 0 every image is opened once now, to find them; see
            :func:`broken_images`. With the default 0 a broken image is an error when it is read.

    Returns:
        A dataset of (image, target) with ``.classes``.

    Raises:
        ValueError: If there is no such dataset name.
        FileNotFoundError: If the data is not there; the message says what is expected.
        ImageError: If more images are broken than may be left out.
        ArchiveError: If the archive is damaged, or is not the one that is expected.

    Examples:
        >>> from mixco_lightly.data.datasets import create_dataset
        >>> dataset = create_dataset("digits", "data", train=True)
        >>> len(dataset), dataset[0][0].size
        (1348, (8, 8))
    """
    check_name(name)
    root = Path(data_dir)
    if name == "digits":
        return Digits(train, transform)
    if name == "tiny-imagenet":
        split = "train" if train else "val"
        if root.suffix == ".zip":
            root = unpack_once(root, TINY_IMAGENET, _progress)
        images = TinyImageNet(root, split, transform, loader=open_image)
        return _prepare(images, Path(images.root), split, keep_decoded, max_broken_images)
    if name == "imagefolder":
        folder = open_split(root, train, transform, open_image)
        split = "images" if Path(folder.root) == root else Path(folder.root).name
        return _prepare(folder, root, split, keep_decoded, max_broken_images)
    return _cifar(name, root, train, transform, download)


def create_train_test(
    name: str,
    data_dir: str | Path,
    train_transform: Transform | None = None,
    test_transform: Transform | None = None,
    download: bool = False,
    keep_decoded: bool = False,
    max_broken_images: int = 0,
) -> tuple[LabelledImages, LabelledImages]:
    """Opens the training and the test images of a dataset, which must have the same classes.

    Args:
        name: As for :func:`create_dataset`.
        data_dir: As for :func:`create_dataset`.
        train_transform: Called with each training image.
        test_transform: Called with each test image.
        download: As for :func:`create_dataset`.
        keep_decoded: As for :func:`create_dataset`.
        max_broken_images: As for :func:`create_dataset`, of each of the two.

    Returns:
        The training and the test dataset.

    Raises:
        ValueError: If the two have different classes, or as for :func:`create_dataset`.
        FileNotFoundError: If the images have no labels, or as for :func:`create_dataset`.
    """
    options = (download, keep_decoded, max_broken_images)
    train = create_dataset(name, data_dir, True, train_transform, *options)
    if not train.classes:
        root = Path(data_dir)
        raise FileNotFoundError(
            f"The images in {data_dir} have no labels: expected are {root / 'train'}/CLASS/*.jpg "
            f"and {root / 'test'}/CLASS/*.jpg (or {root / 'val'}); {describe_folder(root)}."
        )
    test = create_dataset(name, data_dir, False, test_transform, *options)
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"The training and the test images in {data_dir} have different classes; only one "
            f"of the two has: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}."
        )
    return train, test


def check_name(name: str) -> DatasetInfo:
    """Looks a dataset's facts up by name.

    Args:
        name: A key of ``DATASETS``.

    Returns:
        Its image size and statistics.

    Raises:
        ValueError: If there is no such dataset.
    """
    if name not in DATASETS:
        raise ValueError(f"There is no dataset {name!r}; choose one of: {', '.join(DATASETS)}.")
    return DATASETS[name]


def find_dataset(data_dir: str | Path) -> tuple[str, str]:
    """Finds out which dataset a folder has, by its layout.

    ``cifar-10-batches-py`` is cifar10, ``cifar-100-python`` is cifar100, ``wnids.txt`` (in the
    folder, or in ``tiny-imagenet-200`` there) and ``tiny-imagenet-200.zip`` are tiny-imagenet, and
    any other images are an imagefolder.

    Args:
        data_dir: Folder of the data, or TinyImageNet's archive.

    Returns:
        The dataset's name, and what was found, in words.

    Raises:
        FileNotFoundError: If there is no dataset in the folder.
        ValueError: If there are several.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mixco_lightly.data.datasets import find_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.jpg").write_bytes(b"")
        0
        >>> find_dataset(folder)
        ('imagefolder', 'images')
    """
    root = Path(data_dir)
    choice = f"Give --dataset, one of: {', '.join(DATASETS)}."
    found = []
    for name, cls in _CIFAR.items():
        if (root / cls.base_folder).is_dir():
            found.append((name, cls.base_folder))
    folders = [root, root / TINY_IMAGENET.folder]
    tiny = next((x for x in folders if (x / TINY_IMAGENET.marker).is_file()), None)
    if tiny is not None or root.name == f"{TINY_IMAGENET.folder}.zip":
        found.append(("tiny-imagenet", TINY_IMAGENET.folder))
    if tiny != root and any(find_images(root, without=tiny)):
        found.append(("imagefolder", "images"))
    if len(found) > 1:
        names = ", ".join(f"{name} ({what})" for name, what in found)
        raise ValueError(f"{data_dir} has several datasets: {names}. {choice}")
    if not found:
        raise FileNotFoundError(
            f"There is neither a dataset nor an image in {data_dir}: {describe_folder(root)}. "
            f"{choice}"
        )
    return found[0]


def has_labels(name: str, data_dir: str | Path) -> bool:
    """Whether a dataset has labels, and test images to measure by.

    All have but folders of images, where :func:`~mixco_lightly.data.image_folder.find_splits`
    decides.

    Args:
        name: As for :func:`create_dataset`.
        data_dir: As for :func:`create_dataset`.

    Raises:
        FileNotFoundError: If a folder has test images and no folder ``train``.
    """
    return name != "imagefolder" or find_splits(data_dir).test is not None


def have_one_size(images: LabelledImages) -> bool:
    """Whether all images of a dataset have one size, so that a batch of them is one tensor."""
    return isinstance(images, (Digits, DecodedImages, datasets.CIFAR10))


def broken_images(*parts: LabelledImages) -> dict[str, str]:
    """The reason for each image that was left out of datasets because it is broken, by its path."""
    return {path: reason for part in parts for path, reason in getattr(part, "broken", {}).items()}


def _prepare(
    images: TinyImageNet | datasets.ImageFolder | UnlabelledImages,
    folder: Path,
    split: str,
    keep_decoded: bool,
    max_broken_images: int,
) -> LabelledImages:
    """The images of a folder without those that are broken, and decoded if that is wanted."""
    broken: dict[str, str] = {}
    if max_broken_images > 0:
        paths = [path for path, _ in images.samples]
        broken = find_broken(paths, folder, split, max_broken_images, open_image, _progress)
        images.samples = [sample for sample in images.samples if sample[0] not in broken]
        images.targets = [target for _, target in images.samples]
        if not images.samples:
            raise ImageError(f"Every image in {folder} is broken. {next(iter(broken.values()))}")
        if empty := set(range(len(images.classes))) - set(images.targets):
            raise ImageError(
                f"Every image of {images.classes[min(empty)]} in {split} is broken. "
                f"{next(iter(broken.values()))}"
            )
    decoded = None
    if keep_decoded:
        decoded = decode_once(
            images.samples, images.classes, folder, split, images.transform, open_image, _progress
        )
    result: Any = decoded or images
    result.broken = broken
    return result


def _progress(items: Sequence[Any], title: str) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, disable=not console.is_terminal)


def _cifar(
    name: str, root: Path, train: bool, transform: Transform | None, download: bool
) -> LabelledImages:
    cls = _CIFAR[name]
    folder = root / cls.base_folder
    archive = f"{root / cls.filename}, unpacked to {folder}"
    try:
        return cls(str(root), train=train, transform=transform, download=download)
    except OSError as error:
        if not download:
            raise FileNotFoundError(f"{name} in {root} cannot be read: {error}") from error
        raise FileNotFoundError(
            f"{name} could not be downloaded ({error}). Fetch the archive on a machine with a "
            f"connection and put it at {archive}."
        ) from error
    except RuntimeError as error:
        if download:
            raise FileNotFoundError(f"{name} in {root} is damaged: {error}") from error
        missing = (
            f"{folder} is incomplete or damaged, it is not as it was published"
            if folder.is_dir()
            else f"{name} is not in {root}, expected is {archive}; {describe_folder(root)}"
        )
        raise FileNotFoundError(
            f"{missing}. Add --download to fetch it, or name another --data_dir."
        ) from error
