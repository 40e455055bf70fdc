"""Write exported backbones as ONNX and as programs of torch.export.

    python recipes/export.py --backbone_dir runs/moco
    python recipes/export.py --backbone_dir runs/moco runs/simclr --format onnx torch

writes backbone.onnx and backbone.pt2 beside the weights. Both take float32 batches of any size:
normalised images, as load_backbone(DIR).transform returns them. The metadata of an ONNX file, and
backbone.json inside a .pt2 file, have the network's name and what prepares an image: resize
(shorter side), interpolation, crop, mean and std.

    session = onnxruntime.InferenceSession("runs/moco/backbone.onnx")
    features = session.run(None, {"images": images})[0]
    program = torch.export.load("runs/moco/backbone.pt2").module()

Each file is run on random images after it is written. If its features differ from the backbone's
by more than rounding (1e-4 of the largest feature), it is removed and the command fails. ONNX files
are compared only if onnxruntime is installed: pip install 'mixco-lightly[onnx]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from mixco_lightly.training.command_line import parse_options
from mixco_lightly.training.errors import fail_in_one_line
from mixco_lightly.training.interrupts import end_in_one_line


@dataclass(frozen=True)
class ExportConfig:
    """Options of the export.

    Args:
        backbone_dir: One or more folders of runs, or folders that export_backbone wrote.
        format: One or both of onnx and torch (torch.export).
        output_dir: Where to write, as FOLDER.onnx and FOLDER.pt2 with the name of each
            backbone_dir. Default: into each backbone_dir, as backbone.onnx and backbone.pt2.
        overwrite: Whether to replace files.
    """

    backbone_dir: list[str] = field(default_factory=list)
    format: list[Literal["onnx", "torch"]] = field(default_factory=lambda: ["onnx"])
    output_dir: str | None = None
    overwrite: bool = False


def main() -> None:
    """Writes and checks the files."""
    end_in_one_line()
    config = parse_options(ExportConfig, __doc__)
    with fail_in_one_line():
        export(config)


def export(config: ExportConfig) -> None:
    """Loads every backbone before the first file is written."""
    from mixco_lightly.backbones.export import load_backbone
    from mixco_lightly.backbones.formats import (
        ONNX_SUFFIX,
        PROGRAM_SUFFIX,
        check_file,
        export_onnx,
        export_program,
    )

    writers = {"onnx": (ONNX_SUFFIX, export_onnx), "torch": (PROGRAM_SUFFIX, export_program)}
    kinds = [writers[name] for name in dict.fromkeys(config.format)]
    stems = name_files(config.backbone_dir, config.output_dir)
    paths = [stem.with_name(stem.name + suffix) for stem in stems for suffix, _ in kinds]
    existing = [str(path) for path in paths if path.exists()]
    if existing and not config.overwrite:
        raise FileExistsError(f"There is already {', '.join(existing)}: add --overwrite.")
    backbones = [load_backbone(folder) for folder in config.backbone_dir]
    for backbone, stem in zip(backbones, stems, strict=True):
        for suffix, write in kinds:
            path = write(backbone, stem.with_name(stem.name + suffix))
            if suffix == ONNX_SUFFIX and find_spec("onnxruntime") is None:
                print(f"{path}: not compared with {backbone.name}: onnxruntime is not installed.")
                continue
            part = check_file(backbone, path)
            print(f"{path}: equal to {backbone.name} up to {part:.1e} of the largest feature.")


def name_files(folders: Sequence[str], output_dir: str | None) -> list[Path]:
    """Returns the path of each backbone's files, without their suffix."""
    if not folders:
        raise ValueError("Give --backbone_dir: folders of runs or exports.")
    if output_dir is None:
        return [Path(folder) / "backbone" for folder in folders]
    stems = [Path(output_dir) / Path(folder).resolve().name for folder in folders]
    if len(set(stems)) < len(stems):
        raise ValueError(
            f"Two of {', '.join(folders)} have the same name: leave out --output_dir, or export "
            "them one by one."
        )
    return stems


if __name__ == "__main__":
    main()
