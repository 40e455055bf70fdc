"""Opens what is measured: backbones with datasets, all checked before the first measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mixco_lightly.backbones.backbone import Backbone, create_backbone
from mixco_lightly.backbones.description import read_config
from mixco_lightly.backbones.export import load_backbone
from mixco_lightly.backbones.trace import TIMM_ERRORS, measure_feature_dim
from mixco_lightly.data.catalogue import create_train_test, get_dataset
from mixco_lightly.data.images import ImageFacts, LabelledImages
from mixco_lightly.data.subset import choose_part
from mixco_lightly.evaluation.protocol import Protocol
from mixco_lightly.evaluation.records import Record, hash_weights
from mixco_lightly.evaluation.tables import name_dataset


@dataclass(frozen=True)
class Source:
    """A dataset that is measured on.

    Attributes:
        name: The dataset's name.
        data_dir: The dataset's folder.
        image_column: The column of the images, if the user names it.
        label_column: The column of the labels, if the user names it.
    """

    name: str
    data_dir: str
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Subject:
    """A backbone that is measured on a dataset.

    Attributes:
        name: What the user called it.
        pretrained_on: The dataset that it was trained on.
        backbone: The backbone.
        image_size: Height and width of the images that it is given.
        facts: What the images' transforms need to know: the dataset's facts, for published weights
            with the statistics of their training.
        source: The dataset.
        folder: Where the results are written, if anywhere.
    """

    name: str
    pretrained_on: str
    backbone: Backbone
    image_size: int
    facts: ImageFacts
    source: Source
    folder: Path | None


def recorded_dataset(training: Mapping[str, Any]) -> str:
    """Returns the name of the dataset that a backbone was trained on; digits if none is recorded.

    Raises:
        ValueError: If it is a function of the user's: an export runs no code.
    """
    name = str(training.get("dataset", "digits"))
    if ":" in name:
        raise ValueError(
            f"The backbone was trained on {name}, and that code only runs if you name it: give "
            f"--dataset {name}, or another dataset."
        )
    return name


def match_sources(
    names: Sequence[str],
    folders: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
) -> list[Source]:
    """Pairs datasets with their folders.

    Args:
        names: Names of datasets.
        folders: One folder for all datasets, or one for each.
        image_column: The column of the images in those datasets that have columns.
        label_column: The column of the labels in these.

    Returns:
        The datasets in the order of their names.

    Raises:
        ValueError: If a name is unknown, the numbers of names and folders differ, or columns are
            named and no dataset has any.
    """
    if len(folders) not in (1, len(names)):
        raise ValueError(
            f"--data_dir names {len(folders)} folders for {len(names)} datasets: give one for "
            "all, or one for each."
        )
    specs = [get_dataset(name) for name in names]
    if not any(spec.has_columns for spec in specs):
        specs[0].with_columns(image_column, label_column)
    folders = folders if len(folders) == len(names) else list(folders) * len(names)
    return [
        Source(spec.name, folder, *((image_column, label_column) if spec.has_columns else ()))
        for spec, folder in zip(specs, folders, strict=True)
    ]


def open_images(
    sources: Sequence[Source],
    *,
    label_fractions: Sequence[float] = (1.0,),
    download: bool = False,
    keep_decoded: bool = True,
    max_broken_images: int = 0,
) -> dict[Source, tuple[LabelledImages, LabelledImages]]:
    """Opens the training and test images of datasets and checks that they can be measured on.

    Args:
        sources: The datasets.
        label_fractions: Fractions of the training images whose labels will be used.
        download: As for :func:`mixco_lightly.data.catalogue.create_train_test`.
        keep_decoded: Likewise.
        max_broken_images: Likewise.

    Returns:
        Training and test images by dataset.

    Raises:
        ValueError: If a dataset has a single class, or too few images for a fraction.
        OSError: If a file or folder is missing.
    """
    opened = {}
    for source in dict.fromkeys(sources):
        spec = get_dataset(source.name)
        images, test_images = create_train_test(
            spec.with_columns(source.image_column, source.label_column),
            source.data_dir,
            download=download,
            keep_decoded=keep_decoded,
            max_broken_images=max_broken_images,
        )
        if len(images.classes) < 2:
            raise ValueError(
                f"{source.data_dir} has a single class, {images.classes[0]}: give two or more."
            )
        for fraction in label_fractions:
            try:
                choose_part(torch.tensor(images.targets), fraction)
            except ValueError as error:
                raise ValueError(f"--label_fractions on {source.name}: {error}") from error
        opened[source] = images, test_images
    return opened


def open_runs(
    backbone_dirs: Sequence[str],
    sources: Sequence[Source],
    *,
    image_size: int | None = None,
    random_init: bool = False,
    seed: int = 0,
    output_dir: Path | None = None,
) -> list[Subject]:
    """Opens exported backbones, each with each dataset.

    Args:
        backbone_dirs: Folders of runs or exports.
        sources: The datasets.
        image_size: Height and width of the images. Default: each backbone's.
        random_init: Whether the initialisations of the backbones are measured too.
        seed: Seed of the initialisation of an export that has none.
        output_dir: Where the results are written. Default: into each backbone's folder.

    Returns:
        Dataset by dataset: the backbones, then their initialisations.

    Raises:
        ValueError: If a folder has no export, or a backbone does not accept ``image_size``.
        OSError: If a file is missing.
    """
    configs = [read_config(folder) for folder in backbone_dirs]
    trainings: list[Mapping[str, Any]] = [config.get("training", {}) for config in configs]
    backbones = [load_backbone(folder) for folder in backbone_dirs]
    for backbone in backbones:
        _check_image_size(backbone, image_size or backbone.image_size)
    initial = _create_initial_backbones(backbone_dirs, configs, seed) if random_init else {}
    subjects = []
    for source in sources:
        facts = get_dataset(source.name).facts
        for run, training, backbone in zip(backbone_dirs, trainings, backbones, strict=True):
            size = image_size or backbone.image_size
            name = training.get("dataset", "not said")
            pretrained_on = name_dataset(name, training.get("data_dir", ""))
            # A run's statistics are those of its own dataset; only published weights keep theirs.
            is_published = training.get("pretrained")
            own = facts.normalised(backbone.mean, backbone.std) if is_published else facts
            folder = output_dir or Path(run)
            subjects.append(
                Subject(str(Path(run)), pretrained_on, backbone, size, own, source, folder)
            )
        for name, backbone in initial.items():
            size = image_size or backbone.image_size
            subjects.append(
                Subject(name, "nothing (random)", backbone, size, facts, source, output_dir)
            )
    return subjects


def create_subjects(
    timm_names: Sequence[str],
    sources: Sequence[Source],
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    seed: int = 0,
    output_dir: Path | None = None,
) -> list[Subject]:
    """Creates timm backbones, each with each dataset.

    Args:
        timm_names: Names of timm models.
        sources: The datasets.
        pretrained: Whether to load timm's published weights.
        image_size: Height and width of the images. Default: the dataset's.
        seed: Seed of random weights.
        output_dir: Where the results are written. Default: nowhere.

    Returns:
        Dataset by dataset the backbones.

    Raises:
        ValueError: If a model or dataset does not go with ``image_size``.
    """
    subjects = []
    for source in sources:
        spec = get_dataset(source.name)
        size = image_size or spec.image_size
        if size is None:
            raise ValueError(f"{source.name} has no image size of its own: give --image_size.")
        for name in timm_names:
            torch.manual_seed(seed)
            backbone = create_backbone(name, size, pretrained=pretrained)
            facts = spec.facts.normalised(backbone.mean, backbone.std)
            pretrained_on = "published weights" if pretrained else "nothing (random)"
            subjects.append(Subject(name, pretrained_on, backbone, size, facts, source, output_dir))
    return subjects


def describe_subject(
    subject: Subject,
    protocols: Sequence[Protocol],
    label_fractions: Sequence[float],
    *,
    seed: int,
    precision: str,
) -> dict[tuple[float, str], Record]:
    """Describes what will be measured and how: the records without results.

    Args:
        subject: The backbone and the dataset.
        protocols: The protocols.
        label_fractions: Fractions of the labels.
        seed: Seed of the evaluation.
        precision: Precision of the evaluation.

    Returns:
        Records by label fraction and protocol name.
    """
    source = subject.source
    spec = get_dataset(source.name)
    common = {
        "weights_sha256": hash_weights(subject.backbone.model.state_dict()),
        "image_size": subject.image_size,
        "precision": precision,
    }
    columns = {"image_column": source.image_column, "label_column": source.label_column}
    common |= {name: column for name, column in columns.items() if column is not None}
    return {
        (fraction, protocol.name): {
            "backbone": subject.name,
            "pretrained_on": subject.pretrained_on,
            "dataset": source.name,
            "data_dir": None if spec.is_embedded else str(Path(source.data_dir)),
            "label_fraction": fraction,
            "protocol": protocol.name,
            "seed": seed,
            "settings": common | protocol.settings,
        }
        for fraction in label_fractions
        for protocol in protocols
    }


def _create_initial_backbones(
    backbone_dirs: Sequence[str], configs: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Backbone]:
    """Creates the backbones that the runs began with, by name, without duplicates."""
    initial: dict[str, tuple[str, Backbone]] = {}
    for run, config in zip(backbone_dirs, configs, strict=True):
        torch.manual_seed(int(config.get("training", {}).get("seed", seed)))
        backbone = create_backbone(
            config["name"],
            config["image_size"],
            config["in_chans"],
            config["stem"],
            **config["timm_kwargs"],
        )
        initial.setdefault(hash_weights(backbone.model.state_dict()), (str(Path(run)), backbone))
    names = [f"random initialisation of {run}" for run, _ in initial.values()]
    names = names if len(names) > 1 else ["random initialisation"]
    return {name: backbone for name, (_, backbone) in zip(names, initial.values(), strict=True)}


def _check_image_size(backbone: Backbone, image_size: int) -> None:
    try:
        measure_feature_dim(backbone, backbone.in_chans, image_size)
    except TIMM_ERRORS as error:
        raise ValueError(
            f"{backbone.name} was made for images of {backbone.image_size} pixels and does not "
            f"take {image_size}: {' '.join(str(error).split())}"
        ) from error
