"""Measures the named parts of a network with any protocol."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

import mixco_lightly.machine as machine
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.backbones.multi_exit import MultiExitBackbone
from mixco_lightly.data.batches import in_batches
from mixco_lightly.data.images import ImageFacts, LabelledImages, broken_images, have_one_size
from mixco_lightly.data.subset import choose_part
from mixco_lightly.data.transforms import create_probe_transform, create_test_transform
from mixco_lightly.evaluation.features import Features
from mixco_lightly.evaluation.image_sets import create_image_sets
from mixco_lightly.evaluation.parts import ENSEMBLE, Part, extract_parts, split_parts
from mixco_lightly.evaluation.probe_result import ProbeResult, join_notes
from mixco_lightly.evaluation.protocol import Outcome, Protocol, Setup
from mixco_lightly.evaluation.protocols import create_protocols


class Extraction(NamedTuple):
    """A network, a dataset, and the network's features of its images.

    Attributes:
        network: A backbone, or a network with sub-networks.
        images: Training images, without augmentation.
        test_images: Test images.
        train: Features of the training images: (N, D), or (N, E, D) for E exits.
        test: Features of the test images: (M, D), or (M, E, D).
        augmentation: Crops and flips a training image, for protocols that train on images.
        further: Features of further sets of images, by the set's name.
    """

    network: Backbone | MultiExitBackbone
    images: LabelledImages
    test_images: LabelledImages
    train: Features
    test: Features
    augmentation: Callable[[Any], Any]
    further: Mapping[str, Features] = {}


class Measurement(NamedTuple):
    """What a protocol measured of a part of a network, with a fraction of the labels.

    Attributes:
        part: The part's name, see :func:`mixco_lightly.evaluation.parts.name_parts`.
        protocol: The protocol.
        label_fraction: The fraction of the labels.
        training_images: The number of training images in it.
        test_images: The number of test images.
        outcome: The accuracies.
    """

    part: str
    protocol: Protocol
    label_fraction: float
    training_images: int
    test_images: int
    outcome: Outcome


def choose_device(name: str | None, precision: str) -> torch.device:
    """Chooses where to compute, and checks that it works.

    Args:
        name: A device. Default: a GPU if there is one, else the CPU.
        precision: Precision of the networks.

    Returns:
        The device.

    Raises:
        ValueError: If the device cannot be used, or not in this precision.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
    if device.type == "cpu" and precision == "16-mixed":
        raise ValueError("--precision 16-mixed needs a GPU; on a CPU there is bf16-mixed.")
    return device


def evaluate_parts(
    network: Backbone | MultiExitBackbone,
    images: LabelledImages,
    test_images: LabelledImages,
    facts: ImageFacts,
    protocols: Sequence[str],
    *,
    image_size: int,
    num_workers: int | None = None,
    batch_size: int = 256,
    knn_k: int = 200,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "32-true",
) -> tuple[dict[str, dict[str, ProbeResult]], Extraction]:
    """Measures each part of a network with all labels of a dataset.

    The parts are the backbone, each sub-network and, for linear probes on features, the ensemble
    of all exits. The defaults are those of ``recipes/evaluate.py``, so that both measure the same.

    Args:
        network: A backbone, or a network with sub-networks.
        images: Training images. Their transform is ignored; they are not changed.
        test_images: Test images, likewise.
        facts: What the images' transforms need to know.
        protocols: Names of protocols, keys of ``PROTOCOLS``.
        image_size: Height and width of the images that the network takes, in pixels.
        num_workers: Processes that load images. Default: one for each processor, 8 at most.
        batch_size: Images in a batch of the feature extraction.
        knn_k: Number of neighbours of knn.
        seed: Seed of the protocols.
        device: Where to run. Default: a GPU if there is one.
        precision: "32-true", "16-mixed" or "bf16-mixed".

    Returns:
        Results by part and protocol, the backbone's first, and the features they are based on.

    Raises:
        ValueError: If a protocol is unknown or cannot measure these features.
    """
    known = create_protocols(knn_k=knn_k)
    for name in protocols:
        if name not in known:
            raise ValueError(f"There is no protocol {name!r}; choose from: {', '.join(known)}.")
    chosen = [known[name] for name in protocols]
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    extraction = extract(
        network,
        images,
        test_images,
        facts,
        further=create_image_sets(chosen, test_images, facts, seed=seed),
        image_size=image_size,
        num_workers=num_workers,
        batch_size=batch_size,
        device=device,
        precision=precision,
    )
    parts: dict[str, dict[str, ProbeResult]] = {"backbone": {}}
    for measurement in measure(
        extraction,
        chosen,
        num_workers=num_workers,
        seed=seed,
        device=device,
        precision=precision,
    ):
        results = parts.setdefault(measurement.part, {})
        results[measurement.protocol.name] = measurement.outcome.last
    return parts, extraction


def extract(
    network: Backbone | MultiExitBackbone,
    images: LabelledImages,
    test_images: LabelledImages,
    facts: ImageFacts,
    *,
    image_size: int,
    num_workers: int | None,
    batch_size: int,
    device: torch.device,
    precision: str,
    further: Mapping[str, LabelledImages] | None = None,
) -> Extraction:
    """Extracts a network's features of a dataset, all exits in one pass.

    Args:
        network: A backbone, or a network with sub-networks.
        images: Training images; their transform is ignored.
        test_images: Test images, likewise.
        facts: What the images' transforms need to know. They have the statistics that the images
            are normalised by: the dataset's, or those of published weights.
        image_size: Height and width of the images that the network takes, in pixels.
        num_workers: Processes that load images. Default: one for each processor, 8 at most.
        batch_size: Images in a batch.
        device: Where to run.
        precision: "32-true", "16-mixed" or "bf16-mixed".
        further: Further sets of images, see
            :func:`mixco_lightly.evaluation.image_sets.create_image_sets`.

    Returns:
        The features, and what :func:`measure` needs beside them.
    """
    from rich.console import Console

    transform = create_test_transform(facts, image_size)
    further = further or {}
    images, test_images, *others = (
        with_transform(part, transform) for part in (images, test_images, *further.values())
    )
    train, test, *features = extract_parts(
        network,
        (images, test_images, *others),
        batch_size=batch_size,
        num_workers=machine.default_num_workers(num_workers),
        device=device,
        precision=precision,
        progress=Console().is_terminal,
    )
    augmentation = create_probe_transform(facts, image_size)
    sets = dict(zip(further, features, strict=True))
    return Extraction(network, images, test_images, train, test, augmentation, sets)


def measure(
    extraction: Extraction,
    protocols: Sequence[Protocol],
    *,
    num_workers: int | None,
    label_fractions: Sequence[float] = (1.0,),
    seed: int = 0,
    device: torch.device,
    precision: str,
    title: str = "",
) -> Iterator[Measurement]:
    """Measures each part of a network with each protocol and each fraction of the labels.

    Args:
        extraction: The network and its features.
        protocols: The protocols.
        num_workers: Processes that load images. Default: one for each processor, 8 at most.
        label_fractions: Fractions of the training images whose labels are used, in (0, 1].
        seed: Seed of the fractions and of the protocols.
        device: Where to run.
        precision: "32-true", "16-mixed" or "bf16-mixed".
        title: Start of the titles of progress bars.

    Yields:
        Each measurement as soon as it is there.

    Raises:
        ValueError: If a fraction is so small that a class has no image, or a protocol cannot
            measure these features.
    """
    images, test_images = extraction.images, extraction.test_images
    broken = broken_images(images, test_images)
    augmented, augment = images, None
    if any(protocol.needs_images for protocol in protocols):
        augmented, augment = _prepare_augmentation(images, extraction.augmentation)
    # On a CPU the network and a worker would only compete for the processors.
    idle_workers = augment is not None and device.type == "cpu"

    for fraction in label_fractions:
        chosen = choose_part(extraction.train.targets, fraction, seed)
        labelled = Features(*(values[chosen] for values in extraction.train))
        parts = split_parts(extraction.network, labelled, extraction.test, extraction.further)
        setup = Setup(
            images=Subset(in_batches(augmented), chosen.tolist()),
            test_images=test_images,  # type: ignore[arg-type]
            augment=augment,
            num_classes=len(images.classes),
            num_workers=0 if idle_workers else machine.default_num_workers(num_workers),
            seed=seed,
            device=device,
            precision=precision,
            title=f"{title}{100 * fraction:g}% of the labels",
        )
        for protocol in protocols:
            for part, outcome in _measure_parts(protocol, parts, setup):
                if broken:
                    note = f"{len(broken):,} broken images are left out"
                    last = outcome.last._replace(note=join_notes(note, outcome.last.note))
                    outcome = outcome._replace(last=last)
                yield Measurement(part, protocol, fraction, len(chosen), len(test_images), outcome)


def _measure_parts(
    protocol: Protocol, parts: Sequence[Part], setup: Setup
) -> Iterator[tuple[str, Outcome]]:
    outcomes = []
    for part in parts:
        title = f"{setup.title}, {protocol.label}"
        if len(parts) > 1:
            title += f", {part.name.replace('_', ' ')}"
        outcomes.append(protocol.measure(part, replace(setup, title=title)))
        yield part.name, outcomes[-1]
    if protocol.has_ensemble and len(parts) > 1:
        yield ENSEMBLE, protocol.measure_ensemble(parts, outcomes)


def with_transform(images: LabelledImages, transform: Callable[[Any], Any]) -> LabelledImages:
    """Returns a copy of a dataset that has another transform and shares the images."""
    images = copy.copy(images)
    images.transform = transform
    return images


def _prepare_augmentation(
    images: LabelledImages, transform: Callable[[Any], Any]
) -> tuple[LabelledImages, Callable[[Tensor], Tensor] | None]:
    """Prepares training images for protocols that train on them.

    Returns:
        The images and, if they have one size, a function that augments a batch, which is several
        times as fast. Otherwise the images are augmented one by one, and the function is None.
    """
    from lightly.transforms.multi_view_transform import MultiViewTransform
    from torchvision.transforms import PILToTensor

    from mixco_lightly.data.device_transforms import DeviceTransform

    if not have_one_size(images):
        return with_transform(images, transform), None
    on_device = DeviceTransform(MultiViewTransform([transform]))

    def augment(batch: Tensor) -> Tensor:
        (view,) = on_device(batch)
        return view

    return with_transform(images, PILToTensor()), augment
