"""Labelled images, and what a dataset says about them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

Transform = Callable[[Image.Image], Any]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageError(OSError):
    """Raised for an image that cannot be opened; the message names its path."""


@dataclass(frozen=True)
class ImageFacts:
    """What transforms need to know about the images of a dataset.

    Attributes:
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
        has_colour: Whether colour helps to tell the classes apart. Without it, views get no
            colour jitter and are not turned grey.
        can_flip: Whether a mirrored image still belongs to its class. If not, no view is flipped.
        max_rotation: Half of the views are rotated by up to this many degrees in either direction.
        min_scale: Smallest random crop, as a part of the image's area. None: each transform uses
            its own default.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_colour: bool = True
    can_flip: bool = True
    max_rotation: float = 0
    min_scale: float | None = None

    def normalised(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageFacts:
        """Returns the facts with other statistics, such as those of pretrained weights.

        Args:
            mean: Mean of each channel; None keeps the dataset's.
            std: Standard deviation of each channel; None keeps the dataset's.

        Examples:
            >>> from mixco_lightly.data import get_dataset
            >>> get_dataset("cifar10").facts.normalised((0.5, 0.5, 0.5), None).mean
            (0.5, 0.5, 0.5)
        """
        return replace(
            self,
            mean=self.mean if mean is None else tuple(mean),
            std=self.std if std is None else tuple(std),
        )


class LabelledImages(Protocol):
    """A map-style dataset of (image, target) with its targets and class names.

    Images without labels have the target 0 and no class names.
    """

    classes: list[str]
    targets: list[int]
    transform: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class OpenImages(Protocol):
    """A function that opens a dataset."""

    def __call__(self, root: Path, *, train: bool, download: bool) -> LabelledImages:
        """Opens the training or the test images in a data folder, without a transform."""


@dataclass(frozen=True)
class DatasetSpec:
    """Everything that is particular to one dataset.

    Attributes:
        name: What ``--dataset`` calls it.
        facts: What transforms need to know about its images.
        open: Called with the data folder, ``train`` and ``download``. It returns an
            :class:`ImageArray`, an :class:`~mixco_lightly.data.image_files.ImageFiles` or any
            other :class:`LabelledImages`, and raises a FileNotFoundError if the data is missing.
        image_size: Height and width that recipes use by default, in pixels. None: the user has to
            choose it.
        backbone: timm name of the backbone that recipes train by default.
        stem: Stem of the backbone by default, as for
            :func:`~mixco_lightly.backbones.backbone.create_backbone`.
        folder: Name of the dataset's folder as it is published. Empty: it has none.
        find: Called with a data folder. Returns the folder or archive in it that is this dataset,
            or None. Default: looks for ``folder``.
        has_labels: Called with a data folder. Returns whether the images there have labels and
            test images. Default: they always have.
        labels: Where a data folder has its labels, in words. Errors for images without labels say
            it.
        find_unlabelled: Called with a data folder whose images have no labels. Returns the folder
            of which every image is trained on, so that a run must not write into it. Default: any
            folder may be written into.
        has_columns: Whether the images are in a table, so that ``open`` and ``has_labels`` take the
            names ``image_column`` and ``label_column``.
        stream: Called with a data folder. Returns the training images as a stream, as for
            :class:`~mixco_lightly.data.image_stream.ImageStream`; or None, and then ``open`` is
            called. Default: they are no stream.
        is_embedded: Whether the images come with a Python package, so that no data folder is used.
        is_generic: Whether any images can be this dataset, so that its name alone does not say
            which images they are.
    """

    name: str
    facts: ImageFacts
    open: OpenImages
    image_size: int | None = None
    backbone: str = "resnet18"
    stem: Literal["auto", "timm", "small"] = "auto"
    folder: str = ""
    find: Callable[[Path], Path | None] | None = None
    has_labels: Callable[[Path], bool] | None = None
    labels: str = ""
    find_unlabelled: Callable[[Path], Path] | None = None
    has_columns: bool = False
    stream: Callable[[Path], IterableDataset[Any] | None] | None = None
    is_embedded: bool = False
    is_generic: bool = False

    def with_columns(self, image: str | None, label: str | None) -> DatasetSpec:
        """Returns the dataset with named columns.

        Args:
            image: The column of the images. Default: found by the dataset.
            label: The column of the labels. Default: likewise.

        Raises:
            ValueError: If columns are named, and the dataset has none.
        """
        if image is None and label is None:
            return self
        if not self.has_columns:
            raise ValueError(
                f"{self.name} has no columns: leave out --image_column and --label_column, which "
                "go with --dataset huggingface."
            )
        columns: dict[str, Any] = {"image_column": image, "label_column": label}
        assert self.has_labels is not None
        return replace(
            self,
            open=partial(self.open, **columns),
            has_labels=partial(self.has_labels, **columns),
        )


class ImageArray(Dataset[tuple[Any, int]]):
    """Images of one size in one array, with their targets.

    Args:
        pixels: uint8 of shape (N, H, W, 3), or (N, H, W) for grey images.
        targets: Target of each image.
        classes: Class names.
        transform: Called with each PIL image, in RGB.

    Raises:
        ValueError: If the pixels have another type or shape, or the targets another length.

    Examples:
        >>> import numpy as np
        >>> from mixco_lightly.data import ImageArray
        >>> images = ImageArray(np.zeros((5, 8, 8), dtype=np.uint8), [0] * 5, ["black"])
        >>> images[0][0].mode, images[0][1]
        ('RGB', 0)
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        targets: Sequence[int],
        classes: list[str],
        transform: Transform | None = None,
    ) -> None:
        is_image = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
        if pixels.dtype != np.uint8 or not is_image:
            raise ValueError(
                "pixels must be uint8 of shape (N, H, W, 3) or (N, H, W), got "
                f"{pixels.dtype} of shape {pixels.shape}."
            )
        if len(targets) != len(pixels):
            raise ValueError(
                f"Expected one target for each of the {len(pixels)} images, got {len(targets)}."
            )
        self.pixels = pixels
        self.targets = list(targets)
        self.classes = classes
        self.transform = transform

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns the transformed image and its target."""
        image = Image.fromarray(self.pixels[index])
        if image.mode != "RGB":
            image = image.convert("RGB")
        return (self.transform(image) if self.transform else image), self.targets[index]


def have_one_size(images: LabelledImages | IterableDataset[Any]) -> bool:
    """Returns whether the images lie in one array, so that a batch of them is one tensor."""
    return isinstance(images, ImageArray)


def broken_images(*parts: LabelledImages | IterableDataset[Any]) -> dict[str, str]:
    """Returns the broken images that were left out of datasets: path and reason of each."""
    return {path: reason for part in parts for path, reason in getattr(part, "broken", {}).items()}


def open_image(path: str | Path, source: bytes | Image.Image | None = None) -> Image.Image:
    """Opens an image as RGB.

    Reads the first frame of an animation, and drops transparency.

    Args:
        path: The image's file, or for another source its name in errors.
        source: The encoded image, or one that Pillow has opened. Default: the file.

    Returns:
        The decoded image in RGB.

    Raises:
        ImageError: If Pillow cannot decode the whole file, or if the image has more than
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels. (Pillow itself only warns up to twice as many.)
    """
    limit = Image.MAX_IMAGE_PIXELS
    too_large = f"it has more than {limit or 0:,} pixels, the limit PIL.Image.MAX_IMAGE_PIXELS"
    try:
        if not isinstance(source, Image.Image):
            source = Image.open(path if source is None else io.BytesIO(source))
        with source as image:
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise ImageError(f"The image {path} cannot be opened: {too_large}.") from error
    # Pillow raises errors of nearly any type for broken files.
    except Exception as error:
        # Pillow says what it cannot identify, and for bytes that is an address in memory.
        text = " ".join(str(error).split()).partition(" <_io.BytesIO")[0]
        reason = text or type(error).__name__
        raise ImageError(f"The image {path} cannot be opened: {reason}") from error
