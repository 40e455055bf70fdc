"""The datasets that recipes know by name.

A new dataset is a module with a :class:`~mixco_lightly.data.images.DatasetSpec`, and its entry in
``DATASETS``.
"""

from __future__ import annotations

from pathlib import Path

from mixco_lightly.data.cifar import CIFAR10, CIFAR100
from mixco_lightly.data.digits import DIGITS
from mixco_lightly.data.hugging_face import HUGGING_FACE
from mixco_lightly.data.image_files import (
    ImageFiles,
    describe_folder,
    find_images,
    prepare_files,
)
from mixco_lightly.data.image_folder import IMAGE_FOLDER
from mixco_lightly.data.images import DatasetSpec, LabelledImages, Transform
from mixco_lightly.data.own_dataset import own_dataset
from mixco_lightly.data.tar_shards import WEBDATASET
from mixco_lightly.data.tiny_imagenet import TINY_IMAGENET

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in [DIGITS, CIFAR10, CIFAR100, TINY_IMAGENET, IMAGE_FOLDER, HUGGING_FACE, WEBDATASET]
}
"""The datasets by name."""


def get_dataset(name: str) -> DatasetSpec:
    """Returns what is particular to a dataset.

    Args:
        name: A key of ``DATASETS``, or FILE.py:FUNCTION or MODULE:FUNCTION for a dataset of your
            own; see :func:`~mixco_lightly.data.own_dataset.own_dataset`. Its file or module is run.

    Raises:
        ValueError: If there is no such dataset.

    Examples:
        >>> from mixco_lightly.data import get_dataset
        >>> get_dataset("cifar10").image_size
        32
    """
    if ":" in name:
        return own_dataset(name)
    if name not in DATASETS:
        raise ValueError(
            f"There is no dataset {name!r}; choose one of: {', '.join(DATASETS)}, or name a "
            "function of your own, such as my_data.py:create."
        )
    return DATASETS[name]


def create_dataset(
    name: str | DatasetSpec,
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
            layout), "tiny-imagenet" (the official folder, the folder that contains it, or the
            official archive, which is unpacked beside itself), "imagefolder"
            (``data_dir/train/CLASS/*`` and ``data_dir/test`` or ``data_dir/val``; any other folder
            of images has training images without labels, see
            :func:`~mixco_lightly.data.image_folder.find_splits`), "huggingface" (see
            :func:`~mixco_lightly.data.hugging_face.open_hugging_face`), "webdataset" (tar shards,
            see :func:`~mixco_lightly.data.tar_shards.find_shards`), or a dataset of your own, as
            for :func:`get_dataset`. Or what :func:`get_dataset` returns.
        data_dir: Folder of the data; not used for digits. For huggingface it may be the name of a
            dataset on the Hub.
        train: Whether to open the training images or the test images.
        transform: Called with each PIL image.
        download: Whether to download CIFAR if it is missing.
        keep_decoded: Whether to decode the images of a folder once and keep them beside it; see
            :func:`~mixco_lightly.data.decoded.decode_once`. (Digits and CIFAR are in memory.)
        max_broken_images: How many images of a folder may be left out because they cannot be
            opened. If it is not 0, every image is opened once now to find them;
            :func:`~mixco_lightly.data.images.broken_images` names them. With the default 0, a
            broken image raises an ImageError when it is read.

    Returns:
        A dataset of (image, target) with ``.classes``.

    Raises:
        ValueError: If there is no such dataset name.
        FileNotFoundError: If the data is not there; the message says what is expected.
        ImageError: If more images are broken than may be left out.
        ArchiveError: If the archive is damaged or not the expected one.

    Examples:
        >>> from mixco_lightly.data import create_dataset
        >>> dataset = create_dataset("digits", "data", train=True)
        >>> len(dataset), dataset[0][0].size
        (1348, (8, 8))
    """
    images = _get_spec(name).open(Path(data_dir), train=train, download=download)
    if isinstance(images, ImageFiles):
        images = prepare_files(images, keep_decoded, max_broken_images)
    images.transform = transform
    return images


def create_train_test(
    name: str | DatasetSpec,
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
        max_broken_images: As for :func:`create_dataset`, for each of the two.

    Returns:
        The training and the test dataset.

    Raises:
        ValueError: If the two have different classes, or as for :func:`create_dataset`.
        FileNotFoundError: If the images have no labels, or as for :func:`create_dataset`.
    """
    options = (download, keep_decoded, max_broken_images)
    spec = _get_spec(name)
    train = create_dataset(spec, data_dir, True, train_transform, *options)
    if not train.classes:
        # The name of a dataset on the Hub is no folder, and a function need not use one.
        found = f"; {describe_folder(Path(data_dir))}" if Path(data_dir).exists() else ""
        raise FileNotFoundError(
            f"The images in {data_dir} have no labels: expected {spec.labels}{found}."
        )
    test = create_dataset(spec, data_dir, False, test_transform, *options)
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(
            f"The training and the test images in {data_dir} have different classes; only one "
            f"of the two has: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}."
        )
    return train, test


def find_dataset(data_dir: str | Path) -> tuple[str, str]:
    """Finds out by its layout which dataset a folder has.

    ``cifar-10-batches-py`` is cifar10, ``cifar-100-python`` is cifar100, ``wnids.txt`` (in the
    folder or in its ``tiny-imagenet-200``) and ``tiny-imagenet-200.zip`` are tiny-imagenet. What
    ``save_to_disk`` wrote and parquet files that are named as splits are huggingface, tar shards
    are webdataset, and any other images are an imagefolder.

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
        >>> from mixco_lightly.data import find_dataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "a.jpg").write_bytes(b"")
        0
        >>> find_dataset(folder)
        ('imagefolder', 'images')
    """
    root = Path(data_dir)
    found, places = [], []
    for spec in DATASETS.values():
        place = _find(spec, root)
        if place is not None:
            found.append((spec.name, spec.folder or place.name))
            places.append(place)
    if root not in places and any(find_images(root, without=places)):
        found.append((IMAGE_FOLDER.name, "images"))
    choice = f"Give --dataset, one of: {', '.join(DATASETS)}."
    if len(found) > 1:
        names = ", ".join(f"{name} ({what})" for name, what in found)
        raise ValueError(f"{data_dir} has several datasets: {names}. {choice}")
    if not found:
        raise FileNotFoundError(
            f"There is neither a dataset nor an image in {data_dir}: {describe_folder(root)}. "
            f"{choice}"
        )
    return found[0]


def _find(spec: DatasetSpec, root: Path) -> Path | None:
    if spec.find is not None:
        return spec.find(root)
    folder = root / spec.folder
    return folder if spec.folder and folder.is_dir() else None


def _get_spec(name: str | DatasetSpec) -> DatasetSpec:
    return get_dataset(name) if isinstance(name, str) else name


def has_labels(name: str | DatasetSpec, data_dir: str | Path) -> bool:
    """Returns whether a dataset has labels, and test images to measure by.

    All have, except for folders of images, where
    :func:`~mixco_lightly.data.image_folder.find_splits` decides, for Hugging Face datasets, which
    may lack a column of labels or a test split, for tar shards, whose first image may lack a class,
    and for datasets of your own.

    Args:
        name: As for :func:`create_dataset`.
        data_dir: As for :func:`create_dataset`.

    Raises:
        ValueError: If there is no such dataset name.
        FileNotFoundError: If a folder has test images but no training images.
    """
    spec = _get_spec(name)
    return spec.has_labels is None or spec.has_labels(Path(data_dir))
