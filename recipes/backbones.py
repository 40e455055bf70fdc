"""List timm's backbones: parameters, features, stride and cost at an image size.

    python recipes/backbones.py
    python recipes/backbones.py --names 'resnet*' 'vit_tiny*' --image_size 64 --sort multiply_adds
    python recipes/backbones.py --names '*' --csv backbones.csv

Nothing is downloaded and no weights are allocated: the models are built on the meta device. All
names take about half an hour on one core; Ctrl-C prints the rows that are ready.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mixco_lightly.training.command_line import parse_options, print_table
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line
from mixco_lightly.training.option_types import PositiveInt

if TYPE_CHECKING:
    from mixco_lightly.backbones.listing import Row

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


def describe_all(names: list[str], config: ListConfig) -> tuple[list[Row], list[str]]:
    """Describes backbones until the last one or Ctrl-C; returns rows and reasons for refusals."""
    from rich.console import Console
    from rich.progress import track

    from mixco_lightly.backbones.listing import describe

    rows: list[Row] = []
    refused: list[str] = []
    with suppress(KeyboardInterrupt):
        # rich 13.0 prints an empty line even for track(disable=True).
        few = len(names) < 5
        for name in names if few else track(names, "Building", console=Console(stderr=True)):
            try:
                rows.append(describe(name, config.image_size, config.in_chans, config.stem))
            except ValueError as error:
                refused.append(str(error))
    if config.sort == "name":
        rows.sort(key=lambda row: row.name)
    else:
        rows.sort(key=lambda row: getattr(row, config.sort) or 0)  # unknown strides come first
    return rows, refused


def print_rows(rows: list[Row], image_size: int) -> None:
    """Prints the list as a table."""
    import timm

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
    columns = [column.name.replace("_", " ") for column in fields(rows[0])]
    print_table(f"timm {timm.__version__} at {image_size} pixels", columns, cells)


def main() -> None:
    """Prints the list."""
    end_in_one_line()
    config = parse_options(ListConfig, __doc__)
    from mixco_lightly.backbones.listing import find_names, write_csv

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
