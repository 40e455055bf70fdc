"""TinyImageNet in its official folder layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import VisionDataset
from torchvision.datasets.folder import default_loader

from mixco_lightly.data.archive import Contents
from mixco_lightly.data.image_folder import describe_folder

# The official archive has 120,000 images of a few kilobytes and some 200 texts.
TINY_IMAGENET = Contents("tiny-imagenet-200", "wnids.txt", max_files=200_000, max_bytes=2 * 2**30)


class TinyImageNet(VisionDataset):
    """TinyImageNet: 200 classes of 64x64 images, read from the folder of the official archive.

    The training images lie in ``train/WNID/images``; the 10,000 validation images lie in one
    folder, with their classes in ``val/val_annotations.txt``. (The images in ``test`` have no
    public labels.)

    Args:
        root: The folder ``tiny-imagenet-200`` or the folder that it lies in.
        split: "train" or "val".
        transform: Called with each image.
        loader: Opens an image file.

    Attributes:
        classes: The 200 WordNet identifiers, sorted.
        class_to_idx: Maps each of them to its target.
        samples: (path, target) of each image.
        targets: The target of each image.

    Raises:
        ValueError: If split is neither "train" nor "val".
        FileNotFoundError: If a part of the folder is missing; the message names it.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transform: Callable[[Image.Image], Any] | None = None,
        loader: Callable[[str], Image.Image] = default_loader,
    ) -> None:
        if split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {split!r}.")
        root = Path(root)
        if not (root / "wnids.txt").is_file() and (root / "tiny-imagenet-200").is_dir():
            root = root / "tiny-imagenet-200"
        super().__init__(str(root), transform=transform)
        if not (root / "wnids.txt").is_file():
            raise FileNotFoundError(
                f"TinyImageNet is not in {root}: there is no wnids.txt; {describe_folder(root)}. "
                "Give the official archive tiny-imagenet-200.zip, or the folder it makes."
            )
        self.loader = loader
        self.classes = sorted((root / "wnids.txt").read_text().split())
        self.class_to_idx = {wnid: index for index, wnid in enumerate(self.classes)}
        named = _train_samples(root) if split == "train" else _val_samples(root)
        unknown = sorted({wnid for _, wnid in named} - set(self.classes))
        if unknown:
            raise ValueError(f"{root} has images of {unknown[0]}, which is not in its wnids.txt.")
        missing = sorted(set(self.classes) - {wnid for _, wnid in named})
        if missing:
            raise FileNotFoundError(
                f"There are no images of {missing[0]} in {root / split} "
                f"({len(missing)} of {len(self.classes)} classes have none)."
            )
        self.samples = [(str(path), self.class_to_idx[wnid]) for path, wnid in named]
        self.targets = [target for _, target in self.samples]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image, transformed, and its target."""
        path, target = self.samples[index]
        image = self.loader(path)
        return (self.transform(image) if self.transform else image), target


def _train_samples(root: Path) -> list[tuple[Path, str]]:
    paths = sorted((root / "train").glob("*/images/*.JPEG"))
    return [(path, path.parent.parent.name) for path in paths]


def _val_samples(root: Path) -> list[tuple[Path, str]]:
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise FileNotFoundError(f"{annotations} is missing: it has the validation images' classes.")
    # One line an image: file name, WordNet identifier, bounding box.
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line]
    for row in rows:
        if len(row) < 2:
            raise ValueError(f"{annotations} has a line without a class: {row[0]!r}.")
        if "/" in row[0] or "\\" in row[0]:
            raise ValueError(f"{annotations} names an image of another folder: {row[0]!r}.")
    return [(root / "val" / "images" / row[0], row[1]) for row in rows]
