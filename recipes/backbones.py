"""List timm's backbones: parameters, features, stride and cost at an image size.

    python recipes/backbones.py
    python recipes/backbones.py --names 'resnet*' 'vit_tiny*' --image_size 64 --sort multiply_adds
    python recipes/backbones.py --names '*' --csv backbones.csv

Nothing is downloaded and no weights are allocated: the models are built on the meta device. All
names take about half an hour on one core; Ctrl-C prints the rows that are ready.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take seconds
    from mixco_lightly.training.interrupts import end_in_one_line

    end_in_one_line()

import csv
import fnmatch
from contextlib import suppress
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Literal

import timm
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from mixco_lightly.backbones.backbone import build_backbone
from mixco_lightly.backbones.choice import Fitting
from mixco_lightly.training.command_line import parse_options, print_table
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.option_types import PositiveInt

Order = Literal["name", "parameters", "feature_dim", "output_stride", "multiply_adds"]


@dataclass(frozen=True)
class ListConfig:
    """Options of the list.

    Args:
        names: Wildcards of timm names, in quotes. Default: timm's tiny test models and ResNets.
        image_size: Height and width of the images in pixels.
        in_chans: Channels of the images.
        stem: timm as published, small for small images, or auto to choose by image size.
        sort: Column to sort by, ascending.
        csv: File to write the list to as well.
    """

    names: list[str] = field(default_factory=lambda: ["test_*", "resnet[1-9]*"])
    image_size: PositiveInt = 32
    in_chans: PositiveInt = 3
    stem: Literal["auto", "timm", "small"] = "auto"
    sort: Order = "name"
    csv: str | None = None


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


def describe(name: str, config: ListConfig) -> Row:
    """Builds a backbone on the meta device and counts its parameters and operations.

    Raises:
        ValueError: If the backbone does not take such images.
    """
    fit = Fitting(name, config.in_chans).fit(config.image_size, config.stem)
    with torch.device("meta"):
        backbone = build_backbone(name, config.image_size, config.in_chans, fit, {})
        images = torch.empty(1, config.in_chans, config.image_size, config.image_size)
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


def find_names(patterns: list[str]) -> list[str]:
    """Finds the timm names that match one of the wildcards."""
    names = [
        name
        for name in timm.list_models()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    ]
    if not names:
        raise ValueError(f"timm {timm.__version__} has no name like {' or '.join(patterns)}.")
    return names


def describe_all(names: list[str], config: ListConfig) -> tuple[list[Row], list[str]]:
    """Describes backbones until the last one or Ctrl-C; returns rows and reasons for refusals."""
    rows: list[Row] = []
    refused: list[str] = []
    with suppress(KeyboardInterrupt):
        progress = Console(stderr=True)
        for name in track(names, "Building", console=progress, disable=len(names) < 5):
            try:
                rows.append(describe(name, config))
            except ValueError as error:
                refused.append(str(error))
    if config.sort == "name":
        rows.sort(key=lambda row: row.name)
    else:
        rows.sort(key=lambda row: getattr(row, config.sort) or 0)  # unknown strides come first
    return rows, refused


def write_csv(rows: list[Row], path: Path) -> None:
    """Writes the list to a CSV file."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.name for column in fields(Row))
        writer.writerows(map(astuple, rows))


def print_rows(rows: list[Row], image_size: int) -> None:
    """Prints the list as a table."""
    cells = [
        [
            row.name,
            f"{row.parameters / 1e6:,.2f} M",
            f"{row.feature_dim:,}",
            str(row.output_stride or "-"),
            f"{row.multiply_adds / 1e6:,.1f} M",
            row.stem,
        ]
        for row in rows
    ]
    columns = [column.name.replace("_", " ") for column in fields(Row)]
    print_table(f"timm {timm.__version__} at {image_size} pixels", columns, cells)


def main() -> None:
    """Prints the list."""
    config = parse_options(ListConfig, __doc__)
    with fail_in_one_line():
        names = find_names(config.names)
        rows, refused = describe_all(names, config)
        if config.csv is not None:
            write_csv(rows, Path(config.csv))
        if rows:
            print_rows(rows, config.image_size)
        for reason in refused:
            print(reason)
        left = len(names) - len(rows) - len(refused)
        print(
            f"{len(rows):,} backbones, {len(refused):,} names that do not take these images"
            + (f", {left:,} not looked at" if left else "")
            + "."
        )


if __name__ == "__main__":
    main()
