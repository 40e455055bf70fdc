"""The named parts of a network: its backbone, or each exit of a network with sub-networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixco_lightly.backbones.multi_exit import MultiExitBackbone
from mixco_lightly.data.batches import in_batches
from mixco_lightly.evaluation.exits import select_exit
from mixco_lightly.evaluation.features import Features, extract_features

BACKBONE = "backbone"
# The mean of all exits' scores. It is no part, because it has no features.
ENSEMBLE = "ensemble"


class Part(NamedTuple):
    """A part of a network, and its features.

    Attributes:
        name: "backbone", "subnetwork", or "subnetwork_N" for the sub-network after stage N.
        network: Maps images (N, C, H, W) to features (N, D); has ``feature_dim``.
        train: Features of the training images.
        test: Features of the test images.
        further: Features of further sets of images, by the set's name.
    """

    name: str
    network: nn.Module
    train: Features
    test: Features
    further: Mapping[str, Features] = {}


class StackedExits(nn.Module):
    """Returns the features of all exits as one tensor (N, E, D), for a single extraction.

    Args:
        network: A network with several exits.
    """

    def __init__(self, network: MultiExitBackbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Computes the features of images (N, C, H, W)."""
        return torch.stack(self.network(images), dim=1)


class SingleExit(nn.Module):
    """Returns the features of one exit (N, D), as a backbone does.

    Args:
        network: A network with several exits.
        index: Index of the exit.
    """

    def __init__(self, network: MultiExitBackbone, index: int) -> None:
        super().__init__()
        self.network = network
        self.index = index
        self.feature_dim = network.feature_dim

    def forward(self, images: Tensor) -> Tensor:
        """Computes the features of images (N, C, H, W)."""
        return self.network(images)[self.index]


def name_parts(network: nn.Module) -> list[str]:
    """Names what can be measured of a network.

    Args:
        network: A backbone, or a network with sub-networks.

    Returns:
        The names of the exits in the order of their features, and of their ensemble if there are
        several.

    Examples:
        >>> from mixco_lightly import MultiExitBackbone, create_backbone
        >>> from mixco_lightly.evaluation.parts import name_parts
        >>> name_parts(create_backbone("test_resnet", image_size=32))
        ['backbone']
        >>> name_parts(MultiExitBackbone("test_resnet", image_size=32, exits=(1, 2)))
        ['subnetwork_1', 'subnetwork_2', 'backbone', 'ensemble']
    """
    if not isinstance(network, MultiExitBackbone) or not network.exits:
        return [BACKBONE]
    if len(network.exits) == 1:
        return ["subnetwork", BACKBONE, ENSEMBLE]
    return [*(f"subnetwork_{stage}" for stage in network.exits), BACKBONE, ENSEMBLE]


def extract_parts(network: nn.Module, datasets: Sequence[Any], **options: Any) -> list[Features]:
    """Extracts the features of all parts of a network in one pass over each dataset.

    Args:
        network: A backbone, or a network with sub-networks.
        datasets: Datasets of images and targets.
        **options: Options of :func:`extract_datasets`.

    Returns:
        For each dataset features of shape (N, D), or (N, E, D) for a network with E exits.
    """
    if isinstance(network, MultiExitBackbone):
        network = StackedExits(network)
    return extract_datasets(network, datasets, **options)


def split_parts(
    network: nn.Module,
    train: Features,
    test: Features,
    further: Mapping[str, Features] | None = None,
) -> list[Part]:
    """Splits the features of a network into those of its parts.

    Args:
        network: A backbone, or a network with sub-networks.
        train: Features of training images, as :func:`extract_parts` returns them.
        test: Features of test images.
        further: Features of further sets of images, by the set's name.

    Returns:
        The parts in the order of :func:`name_parts`, without the ensemble.
    """
    further = further or {}
    if not isinstance(network, MultiExitBackbone):
        return [Part(BACKBONE, network, train, test, further)]
    names = [name for name in name_parts(network) if name != ENSEMBLE]
    return [
        Part(
            name,
            SingleExit(network, index),
            select_exit(train, index),
            select_exit(test, index),
            {name: select_exit(features, index) for name, features in further.items()},
        )
        for index, name in enumerate(names)
    ]


def extract_datasets(
    network: nn.Module,
    datasets: Sequence[Any],
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    precision: str,
    progress: bool = False,
) -> list[Features]:
    """Extracts a network's features of each dataset, in the order of the images.

    Args:
        network: Maps images (N, C, H, W) to features.
        datasets: Datasets of images and targets.
        batch_size: Images in a batch.
        num_workers: Processes that load images.
        device: Where to run.
        precision: "32-true", "16-mixed" or "bf16-mixed".
        progress: Whether to show a progress bar.

    Returns:
        Features of each dataset.
    """
    # Convolutions are faster in this layout.
    network = network.to(memory_format=torch.channels_last)
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with torch.autocast(device.type, dtype=half, enabled=half is not None):
        return [
            extract_features(
                network,
                DataLoader(in_batches(images), batch_size=batch_size, num_workers=num_workers),
                device=device,
                progress=progress,
            )
            for images in datasets
        ]
