"""The sets of images that protocols need beside training and test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixco_lightly.data.catalogue import create_dataset, find_dataset, get_dataset
from mixco_lightly.data.corruptions import CorruptedImages
from mixco_lightly.data.images import ImageFacts, LabelledImages
from mixco_lightly.evaluation.further_protocols import Corruptions, OutlierDetection, Shift
from mixco_lightly.evaluation.protocol import Protocol
from mixco_lightly.evaluation.tables import name_dataset


def create_image_sets(
    protocols: Sequence[Protocol],
    test_images: LabelledImages,
    facts: ImageFacts,
    others: Mapping[str, LabelledImages] | None = None,
    *,
    seed: int,
) -> dict[str, LabelledImages]:
    """Creates the further sets of images that protocols need.

    Args:
        protocols: The protocols.
        test_images: Test images, which are corrupted.
        facts: Facts whose statistics the images are normalised by.
        others: Images of second datasets, by the name of the set.
        seed: Seed of the corruptions.

    Returns:
        The images by the name of their set.

    Raises:
        ValueError: If a protocol needs a second dataset that is not there, or one of other classes.
    """
    sets: dict[str, LabelledImages] = {}
    for protocol in protocols:
        name = protocol.image_set
        if isinstance(protocol, Corruptions):
            sets[name] = CorruptedImages(
                test_images, facts, max_images=protocol.max_images, seed=seed
            )
        elif name:
            if name not in (others or {}):
                raise ValueError(
                    f"Protocol {protocol.name} needs a second dataset: measure it with "
                    f"mixco-lightly evaluate --{protocol.name}_data_dir."
                )
            assert others is not None
            sets[name] = others[name]
        if isinstance(protocol, Shift):
            _check_classes(sets[name].classes, test_images.classes)
    return sets


def _check_classes(shifted: Sequence[str], classes: Sequence[str]) -> None:
    if list(shifted) == list(classes):
        return
    differing = sorted(set(shifted) ^ set(classes)) or ["their order"]
    raise ValueError(
        "The dataset of --shift_data_dir must have the classes of --dataset; only one of the two "
        f"has: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}."
    )


def open_second_datasets(
    names: Mapping[str, Sequence[str | None]],
    *,
    download: bool = False,
    keep_decoded: bool = True,
    max_broken_images: int = 0,
) -> tuple[dict[str, LabelledImages], dict[str, str]]:
    """Opens the test images of the datasets of shift and ood.

    Args:
        names: For each protocol the dataset's name and its folder. Without a name it is the dataset
            that is found in the folder.
        download: As for :func:`mixco_lightly.data.catalogue.create_dataset`.
        keep_decoded: Likewise.
        max_broken_images: Likewise.

    Returns:
        The images by the name of their set, and the datasets' names by protocol.

    Raises:
        ValueError: If a dataset is unknown, or neither name nor folder is given.
        OSError: If a file or folder is missing.
    """
    sets = {"shift": Shift.image_set, "ood": OutlierDetection.image_set}
    images, found = {}, {}
    for protocol, (given, folder) in names.items():
        if given is None and folder is None:
            raise ValueError(
                f"--protocol {protocol} needs a second dataset: give --{protocol}_data_dir, the "
                f"dataset's folder, or --{protocol}_dataset."
            )
        folder = folder or "data"
        name = given or find_dataset(folder)[0]
        get_dataset(name)
        images[sets[protocol]] = create_dataset(
            name, folder, False, None, download, keep_decoded, max_broken_images
        )
        found[protocol] = name_dataset(name, folder)
    return images, found
