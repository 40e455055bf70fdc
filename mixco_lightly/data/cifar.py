"""CIFAR-10 and CIFAR-100 in torchvision's layout."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torchvision import datasets

from mixco_lightly.data.image_files import describe_folder
from mixco_lightly.data.images import DatasetSpec, ImageArray, ImageFacts


def _open_cifar(
    name: str, source: type[datasets.CIFAR10], root: Path, *, train: bool, download: bool
) -> ImageArray:
    folder = root / source.base_folder
    archive = f"{root / source.filename}, unpacked to {folder}"
    try:
        images = source(str(root), train=train, download=download)
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
            f"{folder} is incomplete or damaged: its files are not those that were published"
            if folder.is_dir()
            else f"{name} is not in {root}: expected {archive}; {describe_folder(root)}"
        )
        raise FileNotFoundError(
            f"{missing}. Add --download to fetch it, or name another --data_dir."
        ) from error
    return ImageArray(images.data, images.targets, images.classes)


# The statistics are those of SupContrast and SelfCon.
CIFAR10 = DatasetSpec(
    "cifar10",
    ImageFacts(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    partial(_open_cifar, "cifar10", datasets.CIFAR10),
    image_size=32,
    folder=datasets.CIFAR10.base_folder,
)
CIFAR100 = DatasetSpec(
    "cifar100",
    ImageFacts(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
    partial(_open_cifar, "cifar100", datasets.CIFAR100),
    image_size=32,
    folder=datasets.CIFAR100.base_folder,
)
