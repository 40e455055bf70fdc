"""Features of a frozen backbone, extracted once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Features(NamedTuple):
    """Features of a dataset and its targets, on the CPU.

    Attributes:
        features: float32 of shape (N, D).
        targets: int64 of shape (N,).
    """

    features: Tensor
    targets: Tensor


@torch.no_grad()
def extract_features(
    backbone: nn.Module,
    dataloader: Iterable[Any],
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Features:
    """Runs a frozen backbone once over a dataset.

    The backbone is in eval mode meanwhile: no weight and no BatchNorm statistic changes. Its
    mode and device are restored afterwards.

    Args:
        backbone: Maps images (N, C, H, W) to features (N, D).
        dataloader: Yields batches that start with images and targets; further elements, such
            as Lightly's file names, are not used.
        device: Where to run. Default: where the backbone is.
        progress: Whether to show a progress bar.

    Returns:
        The features and targets, in the dataloader's order.

    Raises:
        ValueError: If the dataloader yields nothing.

    Examples:
        >>> import torch
        >>> from mixco_lightly import create_backbone, extract_features
        >>> backbone = create_backbone("test_resnet", image_size=32)
        >>> batches = [(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))]
        >>> features, targets = extract_features(backbone, batches)
        >>> features.shape == (4, backbone.feature_dim)
        True
    """
    modes = [(module, module.training) for module in backbone.modules()]
    home = next((tensor.device for tensor in backbone.parameters()), torch.device("cpu"))
    target_device = torch.device(device) if device is not None else home
    if progress:
        from rich.progress import track

        dataloader = track(dataloader, description="features", transient=True)
    features, targets = [], []
    backbone.to(target_device).eval()
    try:
        for images, target, *_ in dataloader:
            images = images.to(target_device, non_blocking=True)
            features.append(backbone(images).float().cpu())
            targets.append(torch.as_tensor(target).cpu())
    finally:
        backbone.to(home)
        for module, training in modes:
            module.training = training
    if not features:
        raise ValueError("The dataloader yielded no batch, so there are no features.")
    return Features(torch.cat(features), torch.cat(targets).long())
