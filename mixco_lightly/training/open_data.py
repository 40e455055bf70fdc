"""The images of a run, opened once and handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from mixco_lightly.data.catalogue import (
    create_dataset,
    create_train_test,
    get_dataset,
    has_labels,
)
from mixco_lightly.data.image_folder import IMAGE_FOLDER, find_splits
from mixco_lightly.data.images import ImageFacts, LabelledImages, broken_images
from mixco_lightly.training.options import DataOptions
from mixco_lightly.training.processes import one_at_a_time


class RunImages(NamedTuple):
    """The images of a run.

    Attributes:
        train: The training images, which may be a stream.
        test: The test images; None for images without labels and for a stream.
        facts: What transforms need to know of the images.
        unlabelled: Why there are no labels to train or measure with; empty if there are.
    """

    train: LabelledImages | IterableDataset[Any]
    test: LabelledImages | None
    facts: ImageFacts
    unlabelled: str

    @property
    def broken(self) -> dict[str, str]:
        """The reason for each broken image that was skipped, by its path."""
        return broken_images(self.train, *([] if self.test is None else [self.test]))


def open_images(
    options: DataOptions, dataset: str, data_dir: str, facts: ImageFacts, output_dir: Path
) -> RunImages:
    """Opens the training images and, where there are labels, the test images.

    Raises:
        ValueError: If the run's pictures would be among the images, or the test images have other
            classes than the training images.
        OSError: If data is missing.
        ImageError: If too many images are broken.
    """
    folder, spec = Path(data_dir), get_dataset(dataset)
    arguments: dict[str, Any] = {
        "download": options.download,
        "keep_decoded": options.keep_decoded,
        "max_broken_images": options.max_broken_images,
    }
    test: LabelledImages | None = None
    with one_at_a_time(folder, create=options.download):
        stream = spec.stream(folder) if spec.stream else None
        if stream is not None:
            return RunImages(stream, None, facts, "the training images are a stream")
        if has_labels(dataset, folder):
            train, test = create_train_test(dataset, folder, **arguments)
        else:
            if spec is IMAGE_FOLDER:
                check_output(output_dir, find_splits(folder).train)
            train = create_dataset(dataset, folder, train=True, **arguments)
    return RunImages(train, test, facts, describe_labels(train, folder, spec.labels))


def check_output(output_dir: Path, images: Path) -> None:
    """Raises a ValueError if a run's pictures would be images to train on."""
    if output_dir.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"All images in {images} are trained on, and --output_dir {output_dir} is in it: "
            "choose a folder elsewhere."
        )


def describe_labels(images: LabelledImages, data_dir: Path, labels: str) -> str:
    """Returns why images have no labels to train or measure with; empty if they have.

    Args:
        images: The training images.
        data_dir: Folder of the data.
        labels: What images with labels look like.
    """
    if not images.classes:
        return f"{data_dir} has no labels (these are {labels})"
    if len(images.classes) == 1:
        return f"{data_dir} has a single class, {images.classes[0]}"
    return ""
