"""Evaluate a backbone: linear probe (torch, scikit-learn) and nearest neighbours.

    python recipes/evaluate.py --backbone_dir runs/moco
    python recipes/evaluate.py --backbone_dir runs/moco --dataset cifar10 --data_dir data
    python recipes/evaluate.py --backbone resnet18 --dataset digits

The backbone is frozen, its features are extracted once, and every protocol works on them. The torch
probe chooses its learning rate on a tenth of the training images. All figures are those of the last
epoch of the probe on the test images. The table is printed and
written to evaluation.json in --output_dir (default: the backbone's folder).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from command_line import default_num_workers, fail_in_one_line, parse_options, print_table
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from torch.utils.data import DataLoader

from mixco_lightly import (
    ProbeResult,
    create_backbone,
    extract_features,
    knn_probe,
    linear_probe,
    load_backbone,
)
from mixco_lightly.data.datasets import check_name, create_train_test
from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.export import read_config
from mixco_lightly.models.backbone import Backbone, measure_feature_dim

Protocol = Literal["torch", "sklearn", "knn"]
PROTOCOL_NAMES: dict[Protocol, str] = {
    "torch": "linear, torch",
    "sklearn": "linear, scikit-learn",
    "knn": "kNN",
}


# Of these the torch probe takes the one that is best on a tenth of the training features: different
# backbones need different ones.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass
class EvaluateConfig:
    """Options of an evaluation.

    Args:
        backbone_dir: A run's output folder, or a folder that export_backbone wrote.
        backbone: A timm name instead, for a backbone without a run: randomly initialised, or
            with --pretrained.
        pretrained: Whether to load timm's published weights (with --backbone); images are then
            normalised as the weights' own settings say.
        dataset: One or more of digits, cifar10, cifar100, tiny-imagenet, imagefolder. Default:
            the one that the backbone was trained on, else digits.
        data_dir: Folder of the data: one for all datasets, or one for each. Default: the one that
            the backbone was trained from, else data.
        download: Whether to download CIFAR if it is missing.
        protocol: What to measure.
        image_size: Height and width of the images in pixels. Default: the backbone's; with
            --backbone the dataset's.
        knn_k: Number of neighbours.
        batch_size: Images in a batch of the feature extraction.
        num_workers: Processes that load images. Default: the number of processors, 8 at most.
        seed: Seed of the probe, and of the random weights with --backbone.
        device: Where to compute, such as cpu or cuda. Default: cuda where there is one.
        output_dir: Where evaluation.json is written. Default: backbone_dir; with --backbone
            nothing is written unless this is given.
    """

    backbone_dir: str | None = None
    backbone: str | None = None
    pretrained: bool = False
    dataset: list[str] = field(default_factory=list)
    data_dir: list[str] = field(default_factory=list)
    download: bool = False
    protocol: list[Protocol] = field(default_factory=lambda: list(PROTOCOL_NAMES))
    image_size: PositiveInt | None = None
    knn_k: PositiveInt = 200
    batch_size: PositiveInt = 256
    num_workers: NonNegativeInt | None = None
    seed: NonNegativeInt = 0
    device: str | None = None
    output_dir: str | None = None


def evaluate_backbone(
    backbone: Backbone,
    dataset: str,
    data_dir: str | Path,
    protocols: list[Protocol],
    *,
    image_size: int,
    batch_size: int,
    num_workers: int,
    knn_k: int = 200,
    seed: int = 0,
    device: torch.device | str | None = None,
    download: bool = False,
    precision: str = "32-true",
    keep_decoded: bool = True,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> dict[Protocol, ProbeResult]:
    """Measures a frozen backbone on a dataset, with one extraction of its features.

    Images are normalised by the dataset's statistics, as in the authors' transfer, or by the
    given mean and standard deviation.
    """
    transform = create_test_transform(dataset, image_size, *(normalize or (None, None)))
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    datasets = create_train_test(dataset, data_dir, transform, transform, download, keep_decoded)
    with torch.autocast(device.type, dtype=half, enabled=half is not None):
        train, test = (
            extract_features(
                backbone,
                DataLoader(images, batch_size=batch_size, num_workers=num_workers),  # type: ignore[arg-type]
                device=device,
                progress=Console().is_terminal,
            )
            for images in datasets
        )
    results: dict[Protocol, ProbeResult] = {}
    for protocol in protocols:
        if protocol == "knn":
            results[protocol] = knn_probe(train, test, k=knn_k)
        else:
            results[protocol] = linear_probe(
                train, test, protocol, learning_rate=LEARNING_RATES, seed=seed, device=device
            )
    return results


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raises a ValueError if the backbone takes only the size that it was made for."""
    try:
        measure_feature_dim(backbone, backbone.in_chans, image_size)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{backbone.name} was made for images of {backbone.image_size} pixels and does not "
            f"take {image_size}: {' '.join(str(error).split())}"
        ) from error


def check_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is; ValueError if it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
    return device


def print_results(title: str, column: str, results: dict[str, dict[Protocol, ProbeResult]]) -> None:
    """Prints the accuracies of named results as a table, and their notes below it."""
    rows, notes = [], []
    for name, protocols in results.items():
        for protocol, result in protocols.items():
            label = PROTOCOL_NAMES[protocol]
            rows.append((name, label, f"{result.top1:.2f}", f"{result.top5:.2f}"))
            if result.note:
                notes.append(f"{name}, {label}: {result.note}")
    print_table(title, [column, "protocol", "top-1 %", "top-5 %"], rows)
    print("".join(f"{note}\n" for note in notes), end="")


def main() -> None:
    """Evaluates a backbone on one or more datasets."""
    config = parse_options(EvaluateConfig, __doc__)
    with fail_in_one_line():
        device = check_device(config.device)
        if (config.backbone_dir is None) == (config.backbone is None):
            raise ValueError(
                "Give either --backbone_dir (a run or an export) or --backbone (timm)."
            )
        trained: dict[str, str] = {}
        if config.backbone_dir is not None:
            trained = read_config(config.backbone_dir).get("training", {})
        names = config.dataset or [trained.get("dataset", "digits")]
        folders = config.data_dir or [trained.get("data_dir", "data")]
        if len(folders) not in (1, len(names)):
            raise ValueError(
                f"--data_dir names {len(folders)} folders for {len(names)} datasets: give one for "
                "all, or one for each."
            )
        for name in names:
            check_name(name)
        folders = folders if len(folders) == len(names) else folders * len(names)
        if config.backbone_dir is not None:
            loaded = load_backbone(config.backbone_dir)

        results: dict[str, dict[Protocol, ProbeResult]] = {}
        for name, folder in zip(names, folders, strict=True):
            normalize: tuple[Sequence[float], Sequence[float]] | None = None
            if config.backbone is not None:
                image_size = config.image_size or check_name(name).image_size
                if image_size is None:
                    raise ValueError(f"{name} has no image size of its own: give --image_size.")
                torch.manual_seed(config.seed)
                backbone = create_backbone(
                    config.backbone, image_size, pretrained=config.pretrained
                )
                if config.pretrained:
                    published: Any = backbone.model.pretrained_cfg
                    normalize = (published["mean"], published["std"])
            else:
                backbone = loaded
                image_size = config.image_size or backbone.image_size
                check_image_size(backbone, image_size)
            results[name] = evaluate_backbone(
                backbone,
                name,
                folder,
                config.protocol,
                image_size=image_size,
                batch_size=config.batch_size,
                num_workers=default_num_workers(config.num_workers),
                knn_k=config.knn_k,
                seed=config.seed,
                device=device,
                normalize=normalize,
                download=config.download,
            )
        print_results(f"{config.backbone_dir or config.backbone}", "dataset", results)
        output_dir = config.output_dir or config.backbone_dir
        if output_dir is not None:
            path = Path(output_dir) / "evaluation.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = {
                name: {protocol: result._asdict() for protocol, result in protocols.items()}
                for name, protocols in results.items()
            }
            path.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    main()
