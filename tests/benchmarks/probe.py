"""Time to an answer of Lightly's linear evaluation and of the linear probes, on real images.

    python tests/benchmarks/probe.py --data_dir cifar10-images --backbone_dir runs/moco --check
    python tests/benchmarks/probe.py --data_dir cifar10-images --images 50000

It takes about ten minutes with its 5,000 training images, nearly all of it Lightly's arm.

Every arm starts from the same frozen backbone and the same image files, without augmentation:

    lightly   Lightly's LinearClassifier: the backbone's forward in every epoch, 90 epochs
    torch     extract_features of both sets, then linear_probe with its defaults
    grid      the same with the learning rates to choose from that evaluate.py has
    sklearn   the same with scikit-learn's solver

Lightly's arm looks at the test images once, after its last epoch; Lightly's own benchmarks do so
in every epoch. Ours are measured once before and once after it, and the mean counts.

With --check the exit code is 1 when torch or grid takes more than 5% of Lightly's time, or when
the top-1 of grid, which the recipes use, is more than 0.5 points from Lightly's. (On the features
of random weights Lightly's is far lower: they are small, and it does not standardise them.)
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightly.utils.benchmarking import LinearClassifier
from pytorch_lightning import Trainer
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Subset

import mixco_lightly.machine as machine
from mixco_lightly import create_backbone, extract_features, linear_probe, load_backbone
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.catalogue import create_train_test, get_dataset
from mixco_lightly.data.transforms import create_test_transform

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))
from mixco_lightly.evaluation.linear_protocols import LEARNING_RATES

BATCH_SIZE = 256
TIME_LIMIT, TOP1_LIMIT = 0.05, 0.5
PROBES: dict[str, dict[str, Any]] = {
    "torch": {},
    "grid": {"learning_rate": LEARNING_RATES},
    "sklearn": {"solver": "sklearn"},
}
Result = dict[str, Any]


def make_loader(images: Any, shuffle: bool, num_workers: int) -> DataLoader[Any]:
    """Batches of images; workers stay for all epochs, which spares Lightly's arm their start."""
    return DataLoader(
        images,
        batch_size=BATCH_SIZE,
        shuffle=shuffle,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def run_lightly(
    backbone: Backbone, train: Any, test: Any, num_classes: int, epochs: int, num_workers: int
) -> Result:
    """Trains Lightly's classifier; the accuracies are those after the last epoch."""
    start = time.perf_counter()
    classifier = LinearClassifier(
        backbone,
        batch_size_per_device=BATCH_SIZE,
        feature_dim=backbone.feature_dim,
        num_classes=num_classes,
        topk=(1, min(5, num_classes)),
    )
    trainer = Trainer(
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
        num_sanity_val_steps=0,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        classifier,
        make_loader(train, True, num_workers),
        make_loader(test, False, num_workers),
    )
    seconds = time.perf_counter() - start
    top1 = 100 * trainer.callback_metrics["val_top1"].item()
    return {"seconds": seconds, "top1": top1, "note": f"{epochs} epochs"}


def run_probes(backbone: Backbone, train: Any, test: Any, num_workers: int) -> dict[str, Result]:
    """Extracts features once; each probe's time is that of the extraction and its own."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    features = [
        extract_features(backbone, make_loader(images, False, num_workers), device)
        for images in (train, test)
    ]
    extraction = time.perf_counter() - start
    results = {}
    for name, options in PROBES.items():
        start = time.perf_counter()
        result = linear_probe(*features, **options, device=device)
        seconds = time.perf_counter() - start
        results[name] = {
            "seconds": extraction + seconds,
            "extraction_seconds": extraction,
            "top1": result.top1,
            "note": result.note,
        }
    return results


def measure(
    make_backbone: Callable[[], Backbone],
    train: Any,
    test: Any,
    num_classes: int,
    epochs: int,
    num_workers: int,
) -> dict[str, Result]:
    """All arms, with their time and accuracy beside Lightly's."""
    before = run_probes(make_backbone(), train, test, num_workers)
    torch.manual_seed(0)
    lightly = run_lightly(make_backbone(), train, test, num_classes, epochs, num_workers)
    after = run_probes(make_backbone(), train, test, num_workers)
    results = {"lightly": lightly, **after}
    for name, result in after.items():
        for figure in ("seconds", "extraction_seconds"):
            result[figure] = (before[name][figure] + after[name][figure]) / 2
        result["time_ratio"] = result["seconds"] / lightly["seconds"]
        result["top1_difference"] = result["top1"] - lightly["top1"]
    return results


def print_results(results: dict[str, Result], title: str, console: Console) -> None:
    """The table of times and accuracies."""
    table = Table(title=title)
    for name in ["arm", "seconds", "of them features", "top-1 %", "time ratio", "top-1 difference"]:
        table.add_column(name, justify="right")
    table.add_column("note")
    for name, result in results.items():
        first = name == "lightly"
        table.add_row(
            name,
            f"{result['seconds']:,.1f}",
            "-" if first else f"{result['extraction_seconds']:,.1f}",
            f"{result['top1']:.2f}",
            "-" if first else f"{result['time_ratio']:.4f}",
            "-" if first else f"{result['top1_difference']:+.2f}",
            result["note"],
        )
    console.print(table)


def limits(results: dict[str, Result]) -> list[tuple[str, float, float]]:
    """Name, value and limit of each figure that has one."""
    return [
        *[
            (f"{name} / lightly, time", results[name]["time_ratio"], TIME_LIMIT)
            for name in ("torch", "grid")
        ],
        ("grid - lightly, top-1", abs(results["grid"]["top1_difference"]), TOP1_LIMIT),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="imagefolder of CIFAR-10, 32 pixels"
    )
    parser.add_argument("--backbone_dir", help="an export; default: resnet10t, random weights")
    parser.add_argument(
        "--images", type=int, default=5000, help="training images; two fifths as many test images"
    )
    parser.add_argument("--epochs", type=int, default=90, help="of Lightly's classifier")
    parser.add_argument("--num_workers", type=int, default=machine.default_num_workers(None))
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the images")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a limit is missed")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    args = parser.parse_args()

    # Lightning advises more workers and tells of the devices that there are not.
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    console = Console(width=160)

    def make_backbone() -> Backbone:
        """The same weights for each arm."""
        torch.manual_seed(args.seed)
        if args.backbone_dir:
            backbone = load_backbone(args.backbone_dir)
        else:
            backbone = create_backbone("resnet10t", image_size=32, stem="timm")
        return backbone.to(memory_format=torch.channels_last)

    backbone = make_backbone()
    transform = create_test_transform(get_dataset("imagefolder").facts, backbone.image_size)
    train, test = create_train_test("imagefolder", args.data_dir, transform, transform)
    num_classes = len(train.classes)
    generator = torch.Generator().manual_seed(args.seed)
    train, test = (
        Subset(images, torch.randperm(len(images), generator=generator)[:number].tolist())
        for images, number in ((train, args.images), (test, 2 * args.images // 5))
    )
    results = measure(make_backbone, train, test, num_classes, args.epochs, args.num_workers)
    print_results(
        results,
        f"{backbone.name}, stem {backbone.stem}, {len(train):,} training and {len(test):,} test "
        "images: time to an answer",
        console,
    )
    if args.output:
        facts = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "num_workers": args.num_workers,
            "backbone": args.backbone_dir or "resnet10t, random weights",
            "train_images": len(train),
            "test_images": len(test),
            "epochs": args.epochs,
            "seed": args.seed,
        }
        args.output.write_text(json.dumps({**facts, "results": results}, indent=1))

    missed = 0
    for name, value, limit in limits(results):
        missed += value > limit
        verdict = "missed" if value > limit else "ok"
        console.print(f"{verdict:>6}  {value:6.3f}  (limit {limit:g})  {name}")
    if args.check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
