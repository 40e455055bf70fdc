"""A dataset of the user's own as labelled images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from mixco_lightly.data.image_files import ImageFiles, show_progress
from mixco_lightly.data.images import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DatasetSpec,
    ImageArray,
    ImageError,
    ImageFacts,
    LabelledImages,
    Transform,
)
from mixco_lightly.data.own_code import call_own, load_function


class OwnImages(Dataset[tuple[Any, int]]):
    """The images of a user's map-style dataset.

    Its items are PIL images, or tuples that start with a PIL image and its label. Its attribute
    ``targets`` has all labels; without it every item is read once for its label. Labels are class
    indices if the dataset has ``classes``, the class names; else they are numbers or texts, and the
    classes are their sorted values.

    Args:
        dataset: The dataset.
        name: What errors call it.
        transform: Called with each PIL image, in RGB.

    Attributes:
        targets: Target of each image; 0 if the items are bare images.
        classes: Class names; empty if the items are bare images.

    Raises:
        ValueError: If it is no such dataset.
        ImageError: If its first item is no such item.
    """

    def __init__(self, dataset: Any, name: str, transform: Transform | None = None) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(
                f"{name} returned {_describe(dataset)}: expected a dataset with len() and items by "
                "index."
            )
        if len(dataset) == 0:
            raise ValueError(f"{name} returned a dataset without items.")
        self.dataset = dataset
        self.name = name
        self.transform = transform
        _, label = self._read(0)
        self.classes: list[str] = []
        self.targets = [0] * len(dataset)
        if label is not None:
            self.classes, self.targets = self._find_targets()

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Returns the transformed image and its target."""
        image, _ = self._read(index)
        with self._naming(index):  # an image is decoded only now if it comes from Image.open
            image = image.convert("RGB")
        return (self.transform(image) if self.transform else image), self.targets[index]

    def _read(self, index: int) -> tuple[Image.Image, Any]:
        """Reads an item; its label is None if the item is a bare image."""
        with self._naming(index):
            item = self.dataset[index]
        image, label = item, None
        if isinstance(item, (tuple, list)) and len(item) > 1:
            image, label = item[:2]
        if not isinstance(image, Image.Image):
            raise ImageError(
                f"Item {index} of {self.name} is {_describe(item)}: expected a PIL image, or a "
                "tuple of one and its label. (The transform is not the dataset's.)"
            )
        return image, label

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Raises an ImageError that names the item for an OSError."""
        try:
            yield
        except OSError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"Item {index} of {self.name} cannot be opened: {reason}") from error

    def _find_targets(self) -> tuple[list[str], list[int]]:
        labels = getattr(self.dataset, "targets", None)
        if labels is None:
            rows = show_progress(range(len(self.dataset)), f"reading the labels of {self.name}")
            labels = [self._read(index)[1] for index in rows]
        labels = [_plain(label) for label in labels]
        if len(labels) != len(self.dataset):
            raise ValueError(
                f"{self.name} has {len(labels)} targets for {len(self.dataset)} items."
            )
        kinds = {type(label) for label in labels}
        if kinds not in ({int}, {str}):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(
                f"{self.name} has labels of type {found}: expected whole numbers, or texts."
            )
        classes = getattr(self.dataset, "classes", None)
        values: Sequence[Any] = sorted(set(labels)) if classes is None else classes
        names = [str(value) for value in values]
        if classes is not None and kinds == {int}:
            values = range(len(names))
        targets = {value: target for target, value in enumerate(values)}
        if unknown := set(labels) - targets.keys():
            raise ValueError(
                f"{self.name} has the label {min(unknown)!r}, which is none of its {len(names)} "
                "classes."
            )
        return names, [targets[label] for label in labels]


class OwnDataset:
    """What a function of the user's returns for a data folder, opened once.

    Args:
        name: FILE.py:FUNCTION or MODULE:FUNCTION.

    Raises:
        ValueError: If there is no such function.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._create = load_function(name)
        self._parts: dict[tuple[Path, bool], LabelledImages | IterableDataset[Any] | None] = {}

    def open(self, root: Path, *, train: bool, download: bool = False) -> LabelledImages:
        """Opens the training or the test images."""
        part = self._open_part(root, train)
        if part is None:
            raise FileNotFoundError(
                f"{self._name} returned None for train={train}: there are no such images."
            )
        if isinstance(part, IterableDataset):
            raise ValueError(
                f"{self._name} returned a stream for train={train}, and here images are read by "
                "index: return a map-style dataset."
            )
        return copy.copy(part)

    def stream(self, root: Path) -> IterableDataset[Any] | None:
        """Returns the training images if they are a stream, else None."""
        part = self._open_part(root, True)
        return part if isinstance(part, IterableDataset) else None

    def has_labels(self, root: Path) -> bool:
        """Returns whether there are labels, and test images."""
        return bool(self.open(root, train=True).classes) and (
            self._open_part(root, False) is not None
        )

    def _open_part(self, root: Path, train: bool) -> LabelledImages | IterableDataset[Any] | None:
        if (root, train) not in self._parts:
            part = call_own(self._name, self._create, root, train)
            if not (part is None or isinstance(part, (ImageArray, ImageFiles, IterableDataset))):
                part = OwnImages(part, self._name)
            self._parts[root, train] = part
        return self._parts[root, train]


def own_dataset(name: str) -> DatasetSpec:
    """Returns the specification of a dataset that a function of the user's opens.

    The function is called as ``create(data_dir, train)``, with a Path and a bool. It returns a
    map-style dataset for :class:`OwnImages`, an :class:`~mixco_lightly.data.images.ImageArray` or
    an :class:`~mixco_lightly.data.image_files.ImageFiles`; None if there are no test images; or,
    for training images, a stream for :class:`~mixco_lightly.data.image_stream.ImageStream`.

    Args:
        name: FILE.py:FUNCTION or MODULE:FUNCTION.

    Raises:
        ValueError: If there is no such function.
    """
    own = OwnDataset(name)
    return DatasetSpec(
        name,
        ImageFacts(mean=IMAGENET_MEAN, std=IMAGENET_STD),
        own.open,
        has_labels=own.has_labels,
        stream=own.stream,
        labels=f"tuples (image, label) from {name}, for train=True and for train=False",
        is_generic=True,
    )


def _plain(label: Any) -> Any:
    """Returns the Python number in a tensor's or NumPy's."""
    return label.item() if hasattr(label, "item") else label


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {', '.join(type(x).__name__ for x in value) or '0'}"
    return "None" if value is None else f"of type {type(value).__name__}"
