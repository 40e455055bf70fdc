"""Measures backbones, their sub-networks and ensembles with any protocol."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from pytorch_lightning.callbacks import Callback, RichProgressBar
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Subset
from torchvision.transforms import PILToTensor

import mixco_lightly.machine as machine
from mixco_lightly import (
    Features,
    MultiExitBackbone,
    ProbeResult,
    create_backbone,
    knn_probe,
    linear_probe,
    load_backbone,
)
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.description import read_config
from mixco_lightly.backbones.trace import TIMM_ERRORS, measure_feature_dim
from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.catalogue import DATASETS, create_train_test, get_dataset
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.images import LabelledImages, broken_images, have_one_size
from mixco_lightly.data.subset import choose_part
from mixco_lightly.data.transforms import create_probe_transform, create_test_transform
from mixco_lightly.evaluation.exit_probe import exit_probe, select_exit
from mixco_lightly.evaluation.image_probes import EpochResults, finetune_probe, paper_probe
from mixco_lightly.evaluation.records import (
    PROTOCOL_LABELS,
    Record,
    build_table,
    format_notes,
    hash_weights,
    package_versions,
)
from mixco_lightly.studies.exit_information import (
    Checkpoints,
    SingleExit,
    StackedExits,
    extract_datasets,
    measure_checkpoints,
    open_checkpoints,
)
from mixco_lightly.studies.information_report import COLUMNS, iterate_cells
from mixco_lightly.training.command_line import print_table
from mixco_lightly.training.option_types import NonNegativeInt, PositiveFloat, PositiveInt
from mixco_lightly.training.resolve import choose_dataset

Protocol = Literal["torch", "sklearn", "knn", "paper", "finetune"]
# The default, and what a pretraining run ends with: these work on features, extracted once.
FEATURE_PROTOCOLS: tuple[Protocol, ...] = ("torch", "sklearn", "knn")
# The ensemble is the mean of the scores of linear classifiers; it has no features of its own.
ENSEMBLE_PROTOCOLS: tuple[Protocol, ...] = ("torch", "sklearn")
PROTOCOL_NAMES: dict[Protocol, str] = {name: PROTOCOL_LABELS[name] for name in FEATURE_PROTOCOLS}

# Of these the torch probe takes the one that is best on a tenth of the training features: different
# backbones need different ones.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# Of these the scikit-learn probe takes one in the same way. The features are standardised: few
# labels and many features want a stronger penalty than scikit-learn's default, which is the last of
# these. With a larger C the fit takes ever longer and follows the training images' noise.
C_VALUES = (0.0001, 0.001, 0.01, 0.1, 1.0)

# Mean and standard deviation of each channel; None for the dataset's.
Normalisation = tuple[Sequence[float] | None, Sequence[float] | None]


@dataclass
class EvaluateConfig:
    """Options of an evaluation.

    Args:
        backbone_dir: A run's output folder, or a folder that export_backbone wrote; or several.
        backbone: A timm name instead, or several, for backbones without a run: randomly
            initialised, or with --pretrained.
        pretrained: Whether to load timm's published weights (with --backbone); images are then
            normalised as the weights' own settings say.
        random_init: Whether the same is measured with the backbone of each backbone_dir at its
            initialisation, once where several runs began with the same one.
        dataset: One or more of digits, cifar10, cifar100, tiny-imagenet, imagefolder. Default:
            the one that the first backbone was trained on; without one, or if that was digits,
            what is found in data_dir, or digits without it.
        data_dir: Folder of the data: one for all datasets, or one for each. Default: the one that
            the first backbone was trained from, else data.
        download: Whether to download CIFAR if it is missing.
        keep_decoded: Whether the images of a folder are decoded once and kept in data_dir/.decoded.
        max_broken_images: How many images of a folder may be left out because they cannot be
            opened, of the training and of the test images each; the tables say how many were.
            With 0 the first broken image is an error.
        protocol: What to measure: torch, sklearn, knn, paper, finetune, mutual-information; one
            or more.
        label_fractions: Parts of the training images whose labels are used, in (0, 1]. The part is
            one of each class, decided by the seed alone, and a larger part contains a smaller
            one. All protocols are given the same images, and all test images are tested.
        image_size: Height and width of the images in pixels. Default: the backbone's; with
            --backbone the dataset's.
        knn_k: Number of neighbours.
        paper_epochs: Epochs of paper.
        paper_learning_rate: Initial learning rate of paper.
        finetune_epochs: Epochs of finetune. The default is Lightly's; SimCLR takes 60 for 1% of
            the labels.
        finetune_learning_rate: Highest learning rate of finetune, for batches of 256.
        step_size: Images in a step of paper and finetune.
        information_steps: Training steps of each critic of mutual-information.
        batch_size: Images in a batch of the feature extraction and of the tests.
        num_workers: Processes that load images. Default: the number of processors, 8 at most.
        seed: Seed of the probes and of the label fractions, and of the random weights with
            --backbone.
        device: Where to compute, such as cpu or cuda. Default: cuda where there is one.
        precision: Precision of the networks. The default float32 is the precision that every run
            is evaluated in at its end; 16-mixed and bf16-mixed are faster on a GPU.
        output_dir: Where evaluation.json and evaluation.md are written. Default: each backbone's
            results into its backbone_dir; with --backbone nothing is written unless this is given.
        overwrite: Whether results may replace those of other settings or weights.
    """

    backbone_dir: list[str] = field(default_factory=list)
    backbone: list[str] = field(default_factory=list)
    pretrained: bool = False
    random_init: bool = False
    dataset: list[str] = field(default_factory=list)
    data_dir: list[str] = field(default_factory=list)
    download: bool = False
    keep_decoded: bool = True
    max_broken_images: NonNegativeInt = 0
    protocol: list[Literal[Protocol, "mutual-information"]] = field(
        default_factory=lambda: [*FEATURE_PROTOCOLS]
    )
    label_fractions: list[float] = field(default_factory=lambda: [1.0])
    image_size: PositiveInt | None = None
    knn_k: PositiveInt = 200
    paper_epochs: PositiveInt = 100
    paper_learning_rate: PositiveFloat = 3.0
    finetune_epochs: PositiveInt = 30
    finetune_learning_rate: PositiveFloat = 0.05
    step_size: PositiveInt = 256
    information_steps: PositiveInt = 1000
    batch_size: PositiveInt = 256
    num_workers: NonNegativeInt | None = None
    seed: NonNegativeInt = 0
    device: str | None = None
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    output_dir: str | None = None
    overwrite: bool = False


def accuracy_protocols(config: EvaluateConfig) -> list[Protocol]:
    """The protocols whose result is an accuracy with a part of the labels: all but one."""
    return [name for name in config.protocol if name != "mutual-information"]


class Measurement(NamedTuple):
    """What a protocol measured with a part of the labels.

    Attributes:
        label_fraction: The part of the labels.
        training_images: The number of training images in it.
        test_images: The number of test images.
        protocol: The protocol.
        part: What was measured: the backbone, a sub-network, or the ensemble of all exits.
        last: Accuracies after the last epoch.
        epochs: The last and the best epoch, for the protocols that test after each.
    """

    label_fraction: float
    training_images: int
    test_images: int
    protocol: Protocol
    part: str
    last: ProbeResult
    epochs: EpochResults | None


class Extraction(NamedTuple):
    """A network, a dataset, and the network's features of its images.

    Attributes:
        network: A backbone, or a network with sub-networks.
        images: Training images, without augmentation.
        test_images: Test images.
        train: Features of the training images: (N, D), or (N, E, D) of E exits.
        test: Features of the test images, of the same shape.
        augmentation: Crops and flips a training image for the protocols paper and finetune.
    """

    network: Backbone | MultiExitBackbone
    images: LabelledImages
    test_images: LabelledImages
    train: Features
    test: Features
    augmentation: Callable[[Any], Any]


def evaluate_backbone(
    backbone: Backbone,
    dataset: str,
    data_dir: str | Path,
    protocols: list[Protocol],
    **options: Any,
) -> dict[Protocol, ProbeResult]:
    """Measures a backbone on a dataset with all labels, as a pretraining run does at its end.

    The options are those of evaluate_parts.
    """
    parts, _ = evaluate_parts(backbone, dataset, data_dir, protocols, **options)
    return parts["backbone"]


def evaluate_parts(
    network: Backbone | MultiExitBackbone,
    dataset: str,
    data_dir: str | Path,
    protocols: list[Protocol],
    *,
    image_size: int,
    num_workers: int,
    batch_size: int = EvaluateConfig.batch_size,
    knn_k: int = EvaluateConfig.knn_k,
    seed: int = 0,
    device: torch.device | str | None = None,
    download: bool = False,
    precision: Any = EvaluateConfig.precision,
    keep_decoded: bool = True,
    max_broken_images: int = 0,
    normalize: Normalisation = (None, None),
) -> tuple[dict[str, dict[Protocol, ProbeResult]], Extraction]:
    """Measures a network on a dataset with all labels: its backbone, sub-networks and ensemble.

    The defaults are those of this command, so that both find the same figures.

    Returns:
        The results by part and protocol, those of the backbone first; and what they were measured
        on.
    """
    config = EvaluateConfig(
        protocol=[*protocols],
        batch_size=batch_size,
        num_workers=num_workers,
        knn_k=knn_k,
        seed=seed,
        download=download,
        precision=precision,
        keep_decoded=keep_decoded,
        max_broken_images=max_broken_images,
    )
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    extraction = extract(network, dataset, data_dir, config, image_size, device, normalize)
    parts: dict[str, dict[Protocol, ProbeResult]] = {"backbone": {}}
    for measurement in measure(extraction, config, device):
        parts.setdefault(measurement.part, {})[measurement.protocol] = measurement.last
    return parts, extraction


def extract(
    network: Backbone | MultiExitBackbone,
    dataset: str,
    data_dir: str | Path,
    config: EvaluateConfig,
    image_size: int,
    device: torch.device,
    normalize: Normalisation = (None, None),
) -> Extraction:
    """Extracts the features of a dataset, all exits at once.

    Images are normalised by the dataset's statistics, as in the authors' transfer, or by the
    given mean and standard deviation.
    """
    facts = get_dataset(dataset).facts.normalised(*normalize)
    transform = create_test_transform(facts, image_size)
    images, test_images = create_train_test(
        dataset,
        data_dir,
        transform,
        transform,
        config.download,
        config.keep_decoded,
        config.max_broken_images,
    )
    train, test = extract_datasets(
        StackedExits(network) if isinstance(network, MultiExitBackbone) else network,
        (images, test_images),
        batch_size=config.batch_size,
        num_workers=machine.default_num_workers(config.num_workers),
        device=device,
        precision=config.precision,
        progress=Console().is_terminal,
    )
    augmentation = create_probe_transform(facts, image_size)
    return Extraction(network, images, test_images, train, test, augmentation)


def measure(
    extraction: Extraction, config: EvaluateConfig, device: torch.device, title: str = ""
) -> Iterator[Measurement]:
    """Measures a network with each protocol and each part of the labels.

    A network with sub-networks is measured part by part: backbone, sub-networks and, with the
    linear probes on features, the ensemble.
    """
    images, test_images = extraction.images, extraction.test_images
    broken = broken_images(images, test_images)
    options: dict[str, Any] = {}
    augmented = images
    protocols = accuracy_protocols(config)
    if not set(protocols) <= set(FEATURE_PROTOCOLS):
        augmented, augment = prepare_augmentation(images, extraction.augmentation)
        # A worker beside a network on the same processors only takes turns with it.
        idle_workers = augment is not None and device.type == "cpu"
        options = {
            "num_classes": len(images.classes),
            "batch_size": config.step_size,
            "augment": augment,
            "num_workers": 0 if idle_workers else machine.default_num_workers(config.num_workers),
            "seed": config.seed,
            "device": device,
            "precision": config.precision,
        }

    for fraction in config.label_fractions:
        chosen = choose_part(extraction.train.targets, fraction, config.seed)
        labelled = Features(*(values[chosen] for values in extraction.train))
        labelled_images: Subset[Any] = Subset(in_batches(augmented), chosen.tolist())
        for protocol in protocols:
            name = f"{title}{100 * fraction:g}% of the labels, {PROTOCOL_LABELS[protocol]}"
            for part, result in run_protocol(
                protocol, extraction, labelled, labelled_images, config, device, options, name
            ):
                epochs = result if isinstance(result, EpochResults) else None
                last = result.last if isinstance(result, EpochResults) else result
                if broken:
                    notes = [f"{len(broken):,} broken images are left out", last.note]
                    last = last._replace(note="; ".join(filter(None, notes)))
                yield Measurement(
                    fraction, len(chosen), len(test_images), protocol, part, last, epochs
                )


def run_protocol(
    protocol: Protocol,
    extraction: Extraction,
    labelled: Features,
    labelled_images: Subset[Any],
    config: EvaluateConfig,
    device: torch.device,
    image_options: Mapping[str, Any],
    title: str,
) -> Iterator[tuple[str, ProbeResult | EpochResults]]:
    """Measures each part of a network with one protocol.

    Args:
        protocol: The protocol.
        extraction: The network and its features.
        labelled: Features of the training images whose labels are used.
        labelled_images: These images.
        config: The options.
        device: Where to compute.
        image_options: Of paper_probe and finetune_probe.
        title: Of the progress bar.

    Yields:
        A part's name and its result. The ensemble has none for knn, paper and finetune.
    """
    if protocol in ENSEMBLE_PROTOCOLS:
        results = probe_linearly(labelled, extraction.test, protocol, config.seed, device)
        yield from zip(name_parts(extraction.network), results, strict=True)
        return
    for index, name in enumerate(name_parts(extraction.network)):
        if name == "ensemble":
            continue
        network: nn.Module = extraction.network
        train, test, heading = labelled, extraction.test, title
        if isinstance(network, MultiExitBackbone):
            network = SingleExit(network, index)
            train, test = (select_exit(features, index) for features in (train, test))
            heading = f"{title}, {name.replace('_', ' ')}"
        if protocol == "knn":
            yield name, knn_probe(train, test, k=config.knn_k)
        elif protocol == "paper":
            yield (
                name,
                paper_probe(
                    network,
                    labelled_images,
                    test,
                    epochs=config.paper_epochs,
                    learning_rate=config.paper_learning_rate,
                    callbacks=[create_progress(heading)],
                    **image_options,
                ),
            )
        else:
            yield (
                name,
                finetune_probe(
                    network,
                    labelled_images,
                    extraction.test_images,  # type: ignore[arg-type]
                    epochs=config.finetune_epochs,
                    learning_rate=config.finetune_learning_rate,
                    callbacks=[create_progress(heading)],
                    **image_options,
                ),
            )


def name_parts(network: Backbone | MultiExitBackbone) -> list[str]:
    """Names what is measured: the exits in the order of their features, then their ensemble."""
    if not isinstance(network, MultiExitBackbone) or not network.exits:
        return ["backbone"]
    if len(network.exits) == 1:
        return ["subnetwork", "backbone", "ensemble"]
    return [*(f"subnetwork_{stage}" for stage in network.exits), "backbone", "ensemble"]


def prepare_augmentation(
    images: LabelledImages, transform: Callable[[Any], Any]
) -> tuple[LabelledImages, Callable[[Tensor], Tensor] | None]:
    """The same images augmented one by one, or plain and with the batches' augmentation.

    In batches it is several times as fast, but the images must have one size.
    """
    augmented = copy.copy(images)
    if not have_one_size(images):
        augmented.transform = transform
        return augmented, None
    augmented.transform = PILToTensor()
    on_device = DeviceTransform(MultiViewTransform([transform]))

    def augment(batch: Tensor) -> Tensor:
        (view,) = on_device(batch)
        return view

    return augmented, augment


def probe_linearly(
    train: Features, test: Features, solver: str, seed: int, device: torch.device
) -> list[ProbeResult]:
    """Trains linear classifiers whose setting is chosen on a tenth of the training features.

    Returns:
        One result, or for features (N, E, D) one for each exit and that of the ensemble.
    """
    options: dict[str, Any] = {"solver": solver, "seed": seed, "device": device}
    reason = "one image a class, none to choose a setting on: linear_probe's default is taken"
    if train.targets.bincount().max() > 1:
        reason = ""
        options |= {"learning_rate": LEARNING_RATES, "C": C_VALUES}
    if train.features.dim() == 3:
        results = exit_probe(train, test, **options)
    else:
        results = [linear_probe(train, test, **options)]
    return [
        result._replace(note="; ".join(filter(None, [reason, result.note]))) for result in results
    ]


def create_progress(title: str) -> Callback:
    """Lightning's bar, or a line after each tenth of the epochs where the output is a file."""
    if not Console().is_terminal:
        return TenLines(title)
    print(title)
    return RichProgressBar()


class TenLines(Callback):
    """Ten lines of a training, each with the accuracy on the test images."""

    def __init__(self, title: str) -> None:
        self._title = title

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints a line, if a tenth is over."""
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        if epoch * 10 // epochs > (epoch - 1) * 10 // epochs:
            top1 = 100 * trainer.callback_metrics["val_top1"]
            print(f"{self._title}: epoch {epoch}/{epochs}, top-1 {top1:.2f} %", flush=True)


@dataclass
class Subject:
    """A backbone that is measured on a dataset.

    Attributes:
        name: What the user called it.
        pretrained_on: The dataset that it was trained on.
        backbone: The backbone.
        image_size: Height and width of the images that it is given.
        normalize: Mean and standard deviation of its images: the dataset's, or those of
            published weights.
        dataset: The dataset's name.
        data_dir: The dataset's folder.
        folder: Where the results are written, if anywhere.
    """

    name: str
    pretrained_on: str
    backbone: Backbone
    image_size: int
    normalize: Normalisation
    dataset: str
    data_dir: str
    folder: Path | None


def open_subjects(config: EvaluateConfig) -> list[Subject]:
    """Every backbone with every dataset, all checked before the first is measured.

    Raises:
        ValueError: If options do not go together, or a backbone and a dataset do not.
        OSError: If a file or folder is missing.
    """
    if bool(config.backbone_dir) == bool(config.backbone):
        raise ValueError("Give either --backbone_dir (a run or an export) or --backbone (timm).")
    if config.random_init and config.backbone:
        raise ValueError("--random_init goes with --backbone_dir; --backbone alone is random.")
    descriptions = [read_config(folder) for folder in config.backbone_dir]
    trainings = [description.get("training", {}) for description in descriptions]
    first = trainings[0] if trainings else {}
    names = config.dataset or [str(first.get("dataset", "digits"))]
    if not config.dataset and config.data_dir and get_dataset(names[0]).is_embedded:
        names = [choose_dataset(None, folder)[0] for folder in config.data_dir]
    folders = config.data_dir or [str(first.get("data_dir", "data"))]
    if len(folders) not in (1, len(names)):
        raise ValueError(
            f"--data_dir names {len(folders)} folders for {len(names)} datasets: give one for "
            "all, or one for each."
        )
    folders = folders if len(folders) == len(names) else folders * len(names)
    for name, folder in zip(names, folders, strict=True):
        images, _ = create_train_test(
            name, folder, download=config.download, max_broken_images=config.max_broken_images
        )
        if len(images.classes) < 2:
            raise ValueError(f"{folder} has a single class, {images.classes[0]}: give two or more.")
        for fraction in config.label_fractions:
            try:
                choose_part(torch.tensor(images.targets), fraction)
            except ValueError as error:
                raise ValueError(f"--label_fractions on {name}: {error}") from error

    output_dir = Path(config.output_dir) if config.output_dir else None
    exports = [load_backbone(folder) for folder in config.backbone_dir]
    subjects = []
    for name, folder in zip(names, folders, strict=True):
        for run, training, backbone in zip(config.backbone_dir, trainings, exports, strict=True):
            image_size = config.image_size or backbone.image_size
            check_image_size(backbone, image_size)
            source = training.get("dataset", "not said")
            if source in DATASETS and DATASETS[source].is_generic:
                source += f" {training.get('data_dir', '')}"
            # A run exports what it was trained with: here only published weights' is kept.
            normalize: Normalisation = (None, None)
            if training.get("pretrained"):
                normalize = (backbone.mean, backbone.std)
            subjects.append(
                Subject(
                    str(Path(run)), source, backbone, image_size, normalize, name, folder,
                    output_dir or Path(run),
                )
            )  # fmt: skip
        if config.random_init:
            subjects += [
                Subject(
                    title, "nothing (random)", backbone, config.image_size or backbone.image_size,
                    (None, None), name, folder, output_dir,
                )
                for title, backbone in create_initial_backbones(config, descriptions).items()
            ]  # fmt: skip
        for timm_name in config.backbone:
            size = config.image_size or get_dataset(name).image_size
            if size is None:
                raise ValueError(f"{name} has no image size of its own: give --image_size.")
            torch.manual_seed(config.seed)
            backbone = create_backbone(timm_name, size, pretrained=config.pretrained)
            normalize = (backbone.mean, backbone.std)
            source = "published weights" if config.pretrained else "nothing (random)"
            subjects.append(
                Subject(timm_name, source, backbone, size, normalize, name, folder, output_dir)
            )
    return subjects


def create_initial_backbones(
    config: EvaluateConfig, descriptions: Sequence[Mapping[str, Any]]
) -> dict[str, Backbone]:
    """The backbones that the runs began with, by name; equal ones are there once."""
    initial: dict[str, tuple[str, Backbone]] = {}
    for run, description in zip(config.backbone_dir, descriptions, strict=True):
        torch.manual_seed(int(description.get("training", {}).get("seed", config.seed)))
        backbone = create_backbone(
            *(description[name] for name in ("name", "image_size", "in_chans", "stem")),
            **description["timm_kwargs"],
        )
        initial.setdefault(hash_weights(backbone.model.state_dict()), (str(Path(run)), backbone))
    names = [f"random initialisation of {run}" for run, _ in initial.values()]
    names = names if len(names) > 1 else ["random initialisation"]
    return {name: backbone for name, (_, backbone) in zip(names, initial.values(), strict=True)}


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raises a ValueError if the backbone takes only the size that it was made for."""
    try:
        measure_feature_dim(backbone, backbone.in_chans, image_size)
    except TIMM_ERRORS as error:
        raise ValueError(
            f"{backbone.name} was made for images of {backbone.image_size} pixels and does not "
            f"take {image_size}: {' '.join(str(error).split())}"
        ) from error


def check_device(name: str | None, precision: str) -> torch.device:
    """The device of that name, or the best there is; ValueError if it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
    if device.type == "cpu" and precision == "16-mixed":
        raise ValueError("--precision 16-mixed needs a GPU; on a CPU there is bf16-mixed.")
    return device


def open_information(
    config: EvaluateConfig, subjects: Sequence[Subject]
) -> list[tuple[Subject, Checkpoints]]:
    """The runs whose mutual information is asked for, with their checkpoints.

    Raises:
        ValueError: If options do not go together, if a run has no sub-networks, or if it has kept
            no checkpoints.
    """
    if "mutual-information" not in config.protocol:
        return []
    what = "--protocol mutual-information"
    if config.backbone:
        raise ValueError(f"{what} is of a run's checkpoints: give --backbone_dir, not --backbone.")
    if len({(subject.dataset, subject.data_dir) for subject in subjects}) > 1:
        raise ValueError(f"{what} takes one --dataset at a time, not {', '.join(config.dataset)}.")
    if len(subjects) > 1 and config.output_dir:
        raise ValueError(f"{what} of several runs is written beside each: leave out --output_dir.")
    return [
        (
            subject,
            open_checkpoints(
                Path(subject.name),
                read_config(subject.name).get("training", {}),
                subject.backbone,
            ),
        )
        for subject in subjects
    ]


def measure_information(
    subject: Subject, checkpoints: Checkpoints, config: EvaluateConfig, device: torch.device
) -> None:
    """Measures the exits at each checkpoint of a run, writes and prints the figures."""
    facts = get_dataset(subject.dataset).facts.normalised(*subject.normalize)
    transform = create_test_transform(facts, subject.image_size)
    datasets = create_train_test(
        *(subject.dataset, subject.data_dir, transform, transform),
        *(config.download, config.keep_decoded, config.max_broken_images),
    )
    folder = subject.folder or checkpoints.run
    settings = {
        "dataset": subject.dataset,
        "image_size": subject.image_size,
        "precision": config.precision,
        "steps": config.information_steps,
        "learning_rates": list(LEARNING_RATES),
        "seed": config.seed,
    }
    rows = measure_checkpoints(
        checkpoints,
        datasets,
        folder,
        settings,
        overwrite=config.overwrite,
        batch_size=config.batch_size,
        num_workers=machine.default_num_workers(config.num_workers),
        device=device,
    )
    print_table(f"{subject.name}, {subject.dataset}", COLUMNS, list(iterate_cells(rows)))
    print(f"Written to {folder / 'mutual_information.md'}, .json and .png.")


def describe(subject: Subject, config: EvaluateConfig) -> dict[tuple[float, Protocol], Record]:
    """The records of a backbone on a dataset, without the results."""
    own_settings: dict[Protocol, dict[str, Any]] = {
        "torch": {"learning_rates": list(LEARNING_RATES)},
        "sklearn": {"C_values": list(C_VALUES)},
        "knn": {"k": config.knn_k},
        "paper": {
            "epochs": config.paper_epochs,
            "learning_rate": config.paper_learning_rate,
            "batch_size": config.step_size,
        },
        "finetune": {
            "epochs": config.finetune_epochs,
            "learning_rate": config.finetune_learning_rate,
            "batch_size": config.step_size,
        },
    }
    common = {
        "weights_sha256": hash_weights(subject.backbone.model.state_dict()),
        "image_size": subject.image_size,
        "precision": config.precision,
    }
    return {
        (fraction, protocol): {
            "backbone": subject.name,
            "pretrained_on": subject.pretrained_on,
            "dataset": subject.dataset,
            "data_dir": None
            if get_dataset(subject.dataset).is_embedded
            else str(Path(subject.data_dir)),
            "label_fraction": fraction,
            "protocol": protocol,
            "seed": config.seed,
            "settings": common | own_settings[protocol],
        }
        for fraction in config.label_fractions
        for protocol in accuracy_protocols(config)
    }


def complete(record: Record, measurement: Measurement) -> Record:
    """The record with its results."""
    record = record | {
        "training_images": measurement.training_images,
        "test_images": measurement.test_images,
        "top1": measurement.last.top1,
        "top5": measurement.last.top5,
    }
    if measurement.epochs is not None:
        best = measurement.epochs.best
        record["best_epoch_on_test"] = {
            "epoch": measurement.epochs.best_epoch,
            "top1": best.top1,
            "top5": best.top5,
        }
    return record | {"note": measurement.last.note, "versions": package_versions()}


def print_results(
    title: str, column: str, results: Mapping[str, Mapping[Any, ProbeResult]]
) -> None:
    """Prints the accuracies of named results as a table, and their notes below it."""
    rows, notes = [], []
    for name, protocols in results.items():
        for protocol, result in protocols.items():
            label = PROTOCOL_LABELS.get(protocol, protocol)
            rows.append((name, label, f"{result.top1:.2f}", f"{result.top5:.2f}"))
            if result.note:
                notes.append(f"{name}, {label}: {result.note}")
    print_table(title, [column, "protocol", "top-1 %", "top-5 %"], rows)
    print("".join(f"{note}\n" for note in notes), end="")


def print_records(records: Sequence[Record]) -> None:
    """Prints a line for each accuracy of the records, and their notes below it."""
    top1, top5 = (build_table(records, metric) for metric in ("top1", "top5"))
    columns = list(zip(*(facts for facts, _ in top1.rows), strict=True))
    # What is the same in all rows is said once.
    varying = [i for i, cells in enumerate(columns) if len(set(cells)) > 1]
    same = [
        f"{name} {cells[0]}"
        for name, cells in zip(top1.facts, columns, strict=True)
        if len(set(cells)) == 1
    ]
    rows = [
        [*(facts[i] for i in varying), name, f"{first:.2f}", f"{fifth:.2f}"]
        for (facts, firsts), (_, fifths) in zip(top1.rows, top5.rows, strict=True)
        for name, first, fifth in zip(top1.measures, firsts, fifths, strict=True)
    ]
    names = [*(top1.facts[i] for i in varying), "protocol", "top-1 %", "top-5 %"]
    print_table(f"Test images; {', '.join(same)}", names, rows)
    print("".join(f"{note}\n" for note in format_notes(records)), end="")
