"""Lists timm's backbones: what they have and what they cost at an image size."""

from __future__ import annotations

import csv
import fnmatch
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from mixco_lightly.backbones.backbone import build_backbone
from mixco_lightly.backbones.choice import Fitting


@dataclass(frozen=True)
class Row:
    """One backbone.

    Args:
        name: The timm name.
        parameters: Number of parameters, without a head.
        feature_dim: Number of features.
        output_stride: Image height divided by the height of the last feature map; None if there is
            no feature map.
        multiply_adds: Multiply-adds of the forward pass of one image.
        stem: timm or small.
    """

    name: str
    parameters: int
    feature_dim: int
    output_stride: int | None
    multiply_adds: int
    stem: str


def find_names(patterns: Sequence[str]) -> list[str]:
    """Finds the timm names that match one of the wildcards.

    Raises:
        ValueError: If there is none.
    """
    names = [
        name
        for name in timm.list_models()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    if not names:
        raise ValueError(f"timm {timm.__version__} has no name like {' or '.join(patterns)}.")
    return names


def describe(name: str, image_size: int, in_chans: int = 3, stem: str = "auto") -> Row:
    """Builds a backbone on the meta device and counts its parameters and operations.

    Args:
        name: A timm name.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        stem: timm, small or auto.

    Raises:
        ValueError: If the backbone does not take such images.
    """
    fit = Fitting(name, in_chans).fit(image_size, stem)
    with torch.device("meta"):
        backbone = build_backbone(name, image_size, in_chans, fit, {})
        images = torch.empty(1, in_chans, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.eval()(images)
    return Row(
        name,
        sum(parameter.numel() for parameter in backbone.parameters()),
        fit.feature_dim,
        fit.output_stride,
        counter.get_total_flops() // 2,
        fit.stem,
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes the list to a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.name for column in fields(Row))
        writer.writerows(map(astuple, rows))
