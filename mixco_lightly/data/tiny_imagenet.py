"""TinyImageNet in its official folder layout."""

from __future__ import annotations

from pathlib import Path

from mixco_lightly.data.archive import Contents, unpack_once
from mixco_lightly.data.image_files import ImageFiles, describe_folder, show_progress
from mixco_lightly.data.images import IMAGENET_MEAN, IMAGENET_STD, DatasetSpec, ImageFacts

# The official archive has 120,000 images of a few kilobytes and about 200 text files.
ARCHIVE = Contents("tiny-imagenet-200", "wnids.txt", max_files=200_000, max_bytes=2 * 2**30)


def open_tiny_imagenet(root: Path, *, train: bool, download: bool = False) -> ImageFiles:
    """Opens TinyImageNet: 200 classes of 64x64 images.

    The training images lie in ``train/WNID/images``. The test images are the 10,000 validation
    images in ``val/images``, whose classes are in ``val/val_annotations.txt``. (The images in
    ``test`` have no public labels.) The classes are the 200 WordNet identifiers, sorted.

    Args:
        root: The folder ``tiny-imagenet-200``, the folder that contains it, or the official
            archive, which is unpacked beside itself.
        train: Whether to open the training images or the validation images.
        download: Not used.

    Raises:
        FileNotFoundError: If a part of the folder is missing; the message names it.
        ValueError: If an image has a class that is not in ``wnids.txt``, or if the annotations
            are damaged.
        ArchiveError: If the archive is damaged or not the official one.
    """
    if root.suffix == ".zip":
        root = unpack_once(root, ARCHIVE, show_progress)
    elif not (root / ARCHIVE.marker).is_file() and (root / ARCHIVE.folder).is_dir():
        root = root / ARCHIVE.folder
    if not (root / ARCHIVE.marker).is_file():
        raise FileNotFoundError(
            f"TinyImageNet is not in {root}: there is no {ARCHIVE.marker}; "
            f"{describe_folder(root)}. Give the official archive {ARCHIVE.folder}.zip, or its "
            "unpacked folder."
        )
    split = "train" if train else "val"
    classes = sorted((root / ARCHIVE.marker).read_text().split())
    target_of = {wnid: target for target, wnid in enumerate(classes)}
    named = _train_samples(root) if train else _val_samples(root)
    present = {wnid for _, wnid in named}
    if unknown := sorted(present - set(classes)):
        raise ValueError(
            f"{root} has images of {unknown[0]}, which is not in its {ARCHIVE.marker}."
        )
    if missing := sorted(set(classes) - present):
        raise FileNotFoundError(
            f"There are no images of {missing[0]} in {root / split} "
            f"({len(missing)} of {len(classes)} classes have none)."
        )
    samples = [(str(path), target_of[wnid]) for path, wnid in named]
    return ImageFiles(samples, classes, root, split)


def _train_samples(root: Path) -> list[tuple[Path, str]]:
    paths = sorted((root / "train").glob("*/images/*.JPEG"))
    return [(path, path.parent.parent.name) for path in paths]


def _val_samples(root: Path) -> list[tuple[Path, str]]:
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations} is missing: it names the classes of the validation images."
        )
    # One line per image: file name, WordNet identifier, bounding box.
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line]
    for row in rows:
        if len(row) < 2:
            raise ValueError(f"{annotations} has a line without a class: {row[0]!r}.")
        if "/" in row[0] or "\\" in row[0]:
            raise ValueError(f"{annotations} names an image in another folder: {row[0]!r}.")
    return [(root / "val" / "images" / row[0], row[1]) for row in rows]


def _find(root: Path) -> Path | None:
    if root.name == f"{ARCHIVE.folder}.zip":
        return root
    folders = [root, root / ARCHIVE.folder]
    return next((folder for folder in folders if (folder / ARCHIVE.marker).is_file()), None)


TINY_IMAGENET = DatasetSpec(
    "tiny-imagenet",
    # MixCo's authors use ImageNet's statistics too.
    ImageFacts(mean=IMAGENET_MEAN, std=IMAGENET_STD),
    open_tiny_imagenet,
    image_size=64,
    folder=ARCHIVE.folder,
    find=_find,
)
