"""The datasets by name."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mixco_lightly.data.datasets import (
    DATASETS as _DATASETS,
    check_name,
    create_train_test as create_train_test,
    find_dataset as find_dataset,
)
from mixco_lightly.data.images import ImageFacts


class DatasetSpec(NamedTuple):
    """A dataset.

    Attributes:
        name: Its name.
        image_size: Height and width that its images are used at by default; None if it has none.
        facts: What its transforms need to know.
        is_embedded: Whether it needs no folder.
        is_generic: Whether its name does not say which images it has.
    """

    name: str
    image_size: int | None
    facts: ImageFacts
    is_embedded: bool = False
    is_generic: bool = False


DATASETS = {
    name: DatasetSpec(name, info.image_size, ImageFacts(info.mean, info.std))
    for name, info in _DATASETS.items()
}
DATASETS["imagefolder"] = DATASETS["imagefolder"]._replace(is_generic=True)
DATASETS["digits"] = DATASETS["digits"]._replace(
    facts=replace(DATASETS["digits"].facts, has_colour=False, can_flip=False, min_scale=0.5),
    is_embedded=True,
)


def get_dataset(name: str) -> DatasetSpec:
    """Looks a dataset up by name; ValueError if there is none."""
    check_name(name)
    return DATASETS[name]
