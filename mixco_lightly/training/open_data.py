"""The images of a run, opened once and handed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import IterableDataset

from mixco_lightly.data.catalogue import create_dataset, create_train_test, has_labels
from mixco_lightly.data.images import DatasetSpec, ImageFacts, LabelledImages, broken_images
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
    options: DataOptions, dataset: DatasetSpec, data_dir: str, facts: ImageFacts, output_dir: Path
) -> RunImages:
    """Opens the training images and, where there are labels, the test images.

    Raises:
        ValueError: If the run's pictures would be among the images, or the test images have other
            classes than the training images.
        OSError: If data is missing.
        ImageError: If too many images are broken.
    """
    folder = Path(data_dir)
    arguments: dict[str, Any] = {
        "download": options.download,
        "keep_decoded": options.keep_decoded,
        "max_broken_images": options.max_broken_images,
    }
    test: LabelledImages | None = None
    with one_at_a_time(folder, create=options.download):
        stream = None if dataset.stream is None else dataset.stream(folder)
        if stream is not None:
            return RunImages(stream, None, facts, "the training images are a stream")
        if has_labels(dataset, folder):
            train, test = create_train_test(dataset, folder, **arguments)
        else:
            if dataset.find_unlabelled is not None:
                check_output(output_dir, dataset.find_unlabelled(folder))
            train = create_dataset(dataset, folder, train=True, **arguments)
    return RunImages(train, test, facts, describe_labels(train, dataset, folder))


def check_output(output_dir: Path, images: Path) -> None:
    """Raises a ValueError if a run's pictures would be images to train on."""
    if output_dir.resolve().is_relative_to(images.resolve()):
        raise ValueError(
            f"All images in {images} are trained on, and --output_dir {output_dir} is in it: "
            "choose a folder elsewhere."
        )


def describe_labels(images: LabelledImages, dataset: DatasetSpec, data_dir: Path) -> str:
    """Returns why images have no labels to train or measure with; empty if they have."""
    if not images.classes:
        return f"{data_dir} has no labels (these are {dataset.labels})"
    if len(images.classes) == 1:
        return f"{data_dir} has a single class, {images.classes[0]}"
    return ""
