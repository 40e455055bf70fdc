"""One pretraining run, whatever the method: data, trainer, run folder, evaluation, summary.

A run writes under its output_dir: config.yaml, metrics.csv, checkpoints/last.ckpt (after every
epoch), backbone.safetensors, backbone.json, curves.png and summary.json.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import platform
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
import yaml
from allocator import keep_freed_memory
from command_line import default_num_workers, fail_in_one_line
from evaluate import PROTOCOL_NAMES, evaluate_backbone, print_results
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning_fabric.utilities.exceptions import MisconfigurationException
from progress import (
    AFTER_DIVERGENCE,
    EpochLines,
    NonFiniteLossError,
    ProgressBar,
    Speed,
    StopOnNonFiniteLoss,
)
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import PILToTensor

from mixco_lightly import create_backbone, export_backbone, load_backbone, mix_pairs
from mixco_lightly.data.datasets import (
    ImageError,
    LabelledImages,
    check_name,
    create_train_test,
    have_one_size,
)
from mixco_lightly.data.device_transforms import DeviceTransform
from mixco_lightly.data.transforms import create_pretrain_transform
from mixco_lightly.loss.contrastive import has_fast_bfloat16
from mixco_lightly.models.backbone import Backbone

# Options that may differ when a run is resumed: they change where it runs, not what it trains.
# (num_workers is not one: every worker draws augmentations of its own.)
_FREE_OPTIONS = {"data_dir", "download", "keep_decoded", "output_dir", "knn_k"}
# Options of the command, not of the run.
_RUN_OPTIONS = {"resume", "overwrite"}
_RUN_FILES = (
    "metrics.csv",
    "backbone.safetensors",
    "backbone.json",
    "curves.png",
    "summary.json",
    "evaluation.json",
)


@dataclass
class PretrainConfig:
    """Options of a pretraining run.

    Args:
        dataset: One of digits, cifar10, cifar100, tiny-imagenet, imagefolder.
        data_dir: Folder of the data; not used for digits.
        download: Whether to download CIFAR if it is missing; with several processes download it
            in a run of one first.
        image_size: Height and width of the views in pixels. Default: the dataset's;
            an imagefolder has none and needs this.
        min_scale: Smallest area of the random crops, as a part of the image's. Default: 0.2, as in
            the authors' code; for digits 0.5.
        backbone: A timm model name. Default: resnet18; for digits test_resnet, timm's smallest.
        stem: timm as published, small for small images, or auto to choose by image size. Default:
            auto; for digits timm.
        backbone_kwargs: Further arguments of timm's model, such as '{"drop_path_rate": 0.1}'.
        pretrained: Whether to start from timm's published weights.
        projection_dim: Dimension of the projections.
        epochs: Passes over the training images.
        batch_size: Images in a batch, on each device.
        learning_rate: Highest learning rate, of SGD with a cosine schedule.
        weight_decay: L2 penalty on all weights.
        warmup_epochs: Epochs of linear warm-up.
        temperature: Divides the similarities of plain images.
        mix_temperature: Divides the similarities of mixtures.
        mix_weight: Weight of the mixtures' term; 0 is the plain baseline.
        alpha: The mixtures' weights follow Beta(alpha, alpha); 1 is uniform.
        seed: Seed of weights, order, augmentations and mixtures.
        augment: Where images are augmented: device, in batches where the network runs; workers,
            one by one in the loader's processes with Lightly's own transform; auto takes device
            unless the images have different sizes.
        keep_decoded: Whether the images of a folder are decoded once and kept in data_dir/.decoded.
        knn_k: Number of neighbours of the kNN evaluation.
        num_workers: Processes that load images, on each device. Default: the number of
            processors, 8 at most; 0 where augmentation and network share them.
        accelerator: Lightning's accelerator: auto, cpu, gpu and so on.
        devices: Number of devices on each node.
        num_nodes: Number of nodes.
        precision: Lightning's precision. auto takes bf16-mixed where the device is faster at
            that, 16-mixed on other GPUs and 32-true elsewhere. (Weights in half precision are not
            offered: the momentum encoder would stand still.)
        compile: Whether to compile networks and loss with torch.compile; needs a C++ compiler on
            a CPU, and minutes before the first step.
        output_dir: Folder of the run.
        resume: Whether to go on with the run in output_dir, from its last finished epoch.
        overwrite: Whether to replace the run in output_dir.
    """

    dataset: str = "digits"
    data_dir: str = "data"
    download: bool = False
    image_size: PositiveInt | None = None
    min_scale: PositiveFloat | None = None
    backbone: str | None = None
    stem: Literal["auto", "timm", "small"] | None = None
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    projection_dim: PositiveInt = 128
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 0.06
    weight_decay: NonNegativeFloat = 5e-4
    warmup_epochs: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 0.2
    mix_temperature: PositiveFloat = 0.2
    mix_weight: NonNegativeFloat = 1.0
    alpha: PositiveFloat = 1.0
    seed: NonNegativeInt = 0
    augment: Literal["auto", "device", "workers"] = "auto"
    keep_decoded: bool = True
    knn_k: PositiveInt = 200
    num_workers: NonNegativeInt | None = None
    accelerator: str = "auto"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    compile: bool = False
    output_dir: str = "runs/pretrain"
    resume: bool = False
    overwrite: bool = False


Config = TypeVar("Config", bound=PretrainConfig)


def pretrain(
    method: str,
    config: Config,
    create_model: Callable[[Backbone, Config], pl.LightningModule],
    mixed_views: Sequence[int],
) -> None:
    """Pretrains a backbone, exports it, and compares its features with random initialisation.

    Args:
        method: "moco" or "simclr"; chooses the augmentations.
        config: The options.
        create_model: Makes the method's LightningModule from a backbone.
        mixed_views: The views that are mixed, unless mix_weight is 0.
    """
    run = Path(config.output_dir)
    is_digits = config.dataset == "digits"
    config = replace(
        config,
        backbone=config.backbone or ("test_resnet" if is_digits else "resnet18"),
        stem=config.stem or ("timm" if is_digits else "auto"),
        precision=choose_precision(config.precision, config.accelerator),
    )
    with fail_in_one_line((ValueError, OSError, MisconfigurationException)):
        image_size = config.image_size or check_name(config.dataset).image_size
        if image_size is None:
            raise ValueError(f"{config.dataset} has no image size of its own: give --image_size.")
        if config.compile:
            check_compiler(config.accelerator)
        if runs_on_cpu(config.accelerator):
            keep_freed_memory()
        data = PretrainData(method, config, image_size, mixed_views)
        config = replace(config, augment=data.config.augment, num_workers=data.config.num_workers)
        backbone = create_initial_backbone(config, image_size)
        # Convolutions are faster in this layout, on CPUs and, in half precision, on GPUs.
        model = create_model(backbone, config).to(memory_format=torch.channels_last)
        if config.compile:
            for part in model.children():
                part.compile()
        speed = Speed()
        trainer = create_trainer(config, run, speed, steps_per_epoch=data.steps_per_epoch)
        checkpoint = run / "checkpoints" / "last.ckpt"
        if is_rank_zero():
            prepare_run(run, config, checkpoint)
        finished_steps = read_steps(checkpoint) if config.resume else 0
    print_on_rank_zero(
        f"{method} on {config.dataset}: {len(data.images):,} images of {image_size} pixels, "
        f"{config.backbone} (stem {backbone.stem}), {config.epochs} epochs, "
        f"mix_weight {config.mix_weight:g}, seed {config.seed}, precision {config.precision}, "
        f"augmented by {config.augment} -> {run}"
    )

    if config.resume:
        restore_metrics(trainer, run, finished_steps)
    try:
        with fail_in_one_line((ImageError, NonFiniteLossError)):
            try:
                trainer.fit(
                    model,
                    datamodule=data,
                    ckpt_path=str(checkpoint) if config.resume else None,
                    weights_only=True,
                )
            except FloatingPointError as error:  # of the queue, which knows nothing of the run
                raise NonFiniteLossError(
                    f"{error} It was step {trainer.global_step + 1} of the run. {AFTER_DIVERGENCE}"
                ) from error
    except SystemExit:
        if trainer.interrupted and checkpoint.is_file():
            script = shlex.quote(sys.argv[0])
            resume = f"python {script} --config {shlex.quote(str(run / 'config.yaml'))} --resume"
            print_on_rank_zero(
                f"Stopped after {trainer.current_epoch} epochs. Go on with:\n  {resume}"
            )
        raise
    if trainer.is_global_zero:
        device = trainer.strategy.root_device
        finish_run(method, config, run, model.backbone, speed, device)  # type: ignore[arg-type]


def choose_precision(precision: str, accelerator: str) -> Any:
    """The given precision, or for auto the fastest that is safe on the device."""
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if has_fast_bfloat16(torch.device("cuda")) else "16-mixed"
    on_cpu = runs_on_cpu(accelerator)
    return "bf16-mixed" if on_cpu and has_fast_bfloat16(torch.device("cpu")) else "32-true"


def runs_on_cpu(accelerator: str) -> bool:
    """Whether Lightning would train on the CPU."""
    return accelerator == "cpu" or (accelerator == "auto" and not torch.accelerator.is_available())


def check_compiler(accelerator: str) -> None:
    """Raises a ValueError if torch.compile has no C++ compiler that it needs on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if runs_on_cpu(accelerator) and not any(name and shutil.which(name) for name in names):
        raise ValueError(
            "--compile needs a C++ compiler on a CPU, and there is neither g++ nor clang++: "
            "install one, or leave --compile out."
        )


def is_rank_zero() -> bool:
    """Whether this process is the first, also before the processes have met."""
    return getattr(rank_zero_only, "rank", 0) == 0


@rank_zero_only
def print_on_rank_zero(text: str) -> None:
    """Prints once, whatever the number of processes."""
    print(text, flush=True)


def create_initial_backbone(config: PretrainConfig, image_size: int) -> Backbone:
    """The backbone at initialisation, which the seed alone decides."""
    assert config.backbone is not None
    assert config.stem is not None
    pl.seed_everything(config.seed, verbose=False)
    return create_backbone(
        config.backbone,
        image_size,
        stem=config.stem,
        pretrained=config.pretrained,
        **config.backbone_kwargs,
    )


class PretrainData(pl.LightningDataModule):
    """Batches of two views and their mixtures, in an order that seed and epoch decide."""

    def __init__(
        self, method: str, config: PretrainConfig, image_size: int, mixed_views: Sequence[int]
    ) -> None:
        super().__init__()
        transform = create_pretrain_transform(
            method, config.dataset, image_size, min_scale=config.min_scale
        )
        # The test images are opened here too, so that a missing one fails before the training.
        self.images: LabelledImages = create_train_test(
            config.dataset,
            config.data_dir,
            download=config.download,
            keep_decoded=config.keep_decoded,
        )[0]
        one_size = have_one_size(self.images)
        if config.augment == "device" and not one_size:
            raise ValueError(
                f"--augment device needs images of one size that are decoded once; those in "
                f"{config.data_dir} are not: use --augment workers."
            )
        on_device = config.augment == "device" or (config.augment == "auto" and one_size)
        self.device_transform = DeviceTransform(transform) if on_device else None
        self.images.transform = PILToTensor() if on_device else transform
        # A worker beside a network on the same processors only takes turns with it.
        workers = 0 if on_device and runs_on_cpu(config.accelerator) else None
        self.config = replace(
            config,
            augment="device" if on_device else "workers",
            num_workers=default_num_workers(
                workers if config.num_workers is None else config.num_workers
            ),
        )
        config = self.config
        self.mixed_views = mixed_views if config.mix_weight > 0 else ()
        processes = config.devices * config.num_nodes
        self.steps_per_epoch = len(self.images) // processes // config.batch_size
        if config.warmup_epochs >= config.epochs:
            raise ValueError(
                f"--warmup_epochs must be less than --epochs, got {config.warmup_epochs:g} and "
                f"{config.epochs}."
            )
        if config.batch_size < 2:
            raise ValueError(f"--batch_size must be at least 2, got {config.batch_size}.")
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"{len(self.images)} images are too few for a batch of {config.batch_size} on "
                f"each of {processes} device(s): lower --batch_size."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """The loader of one epoch.

        It is made anew for every epoch, and all random generators are seeded for that epoch and
        process: a resumed run then draws what the uninterrupted one would have drawn.
        """
        trainer = self.trainer
        assert trainer is not None
        epoch, rank = trainer.current_epoch, trainer.global_rank
        entropy = np.random.SeedSequence((self.config.seed, epoch, rank))
        epoch_seed = int(entropy.generate_state(1)[0])
        pl.seed_everything(epoch_seed, verbose=False)
        sampler: DistributedSampler[Any] = DistributedSampler(
            self.images,  # type: ignore[arg-type]
            num_replicas=trainer.world_size,
            rank=rank,
            seed=self.config.seed,
            drop_last=True,
        )
        sampler.set_epoch(epoch)
        return DataLoader(
            self.images,  # type: ignore[arg-type]
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=default_num_workers(self.config.num_workers),
            drop_last=True,
            pin_memory=torch.cuda.is_available(),
            # The loader would draw a new seed for its workers from this generator each time that it
            # is opened, which a resumed run does more than once: seed_worker makes them the same.
            generator=torch.Generator().manual_seed(epoch_seed),
            worker_init_fn=partial(seed_worker, epoch_seed),
        )

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: list[Any], dataloader_idx: int) -> list[Any]:
        """Makes [views, targets] of a batch, and appends the mixtures, on the device."""
        images, targets = batch
        if self.device_transform is not None:
            images = self.device_transform.to(images.device)(images)
        mixtures = [mix_pairs(images[view], self.config.alpha) for view in self.mixed_views]
        return [images, targets, mixtures]


def seed_worker(epoch_seed: int, worker: int) -> None:
    """Seeds all random generators of a worker process."""
    entropy = np.random.SeedSequence((epoch_seed, worker))
    pl.seed_everything(int(entropy.generate_state(1)[0]), verbose=False)


def prepare_run(run: Path, config: PretrainConfig, checkpoint: Path) -> None:
    """Makes the run's folder and writes its options, or checks that the run can go on.

    Raises:
        ValueError: If the run to resume had other options.
        OSError: If there is nothing to resume, if the folder has a run and is not to be
            overwritten, or if it cannot be written to.
    """
    options = {name: value for name, value in asdict(config).items() if name not in _RUN_OPTIONS}
    path = run / "config.yaml"
    if config.resume:
        if not checkpoint.is_file() or not path.is_file():
            missing = path if checkpoint.is_file() else checkpoint
            raise FileNotFoundError(f"There is no run to resume in {run}: {missing} is missing.")
        before = yaml.safe_load(path.read_text())
        for name in options.keys() - _FREE_OPTIONS:
            if options[name] != before.get(name):
                raise ValueError(
                    f"The run in {run} was started with {name} {before.get(name)}, not "
                    f"{options[name]}: resume it with --config {path} --resume."
                )
        return
    if run.exists() and any(run.iterdir()):
        if not config.overwrite:
            raise FileExistsError(
                f"{run} is not empty: add --resume to go on with its run, --overwrite to replace "
                "it, or choose another --output_dir."
            )
        for name in _RUN_FILES:
            (run / name).unlink(missing_ok=True)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.unlink(missing_ok=True)
    path.write_text(yaml.safe_dump(options, sort_keys=False))


def create_trainer(
    config: PretrainConfig, run: Path, speed: Speed, steps_per_epoch: int
) -> pl.Trainer:
    """Lightning's trainer, with a checkpoint after every epoch and metrics in a CSV file."""
    # Lightning warns that the run's folder exists: it was made for this run just now.
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    # The user chose the number of workers, or default_num_workers did.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # What Lightning says about itself; warnings still come through.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    terminal = Console().is_terminal
    log_every_n_steps = min(10, steps_per_epoch)
    checkpoints = ModelCheckpoint(
        dirpath=run / "checkpoints",
        filename="last",
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=config.precision,  # type: ignore[arg-type]
        logger=CSVLogger(run, name="", version=""),
        log_every_n_steps=log_every_n_steps,
        callbacks=[
            speed,
            StopOnNonFiniteLoss(log_every_n_steps),
            checkpoints,
            ProgressBar(speed, log_every_n_steps) if terminal else EpochLines(speed),
        ],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )


def read_steps(checkpoint: Path) -> int:
    """The number of steps that a checkpoint was saved after; ValueError if it is damaged."""
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"])
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{checkpoint} is damaged or not a checkpoint: {reason}") from error


def restore_metrics(trainer: pl.Trainer, run: Path, finished_steps: int) -> None:
    """Gives a resumed run's logger the rows up to the checkpoint, which it would delete."""
    path = run / "metrics.csv"
    if not trainer.is_global_zero or not path.is_file():
        return
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < finished_steps]
    writer = trainer.logger.experiment  # type: ignore[union-attr]
    for row in rows:
        values = {name: value for name, value in row.items() if value and name != "step"}
        writer.log_metrics(values, int(row["step"]))
    writer.save()


def finish_run(
    method: str,
    config: PretrainConfig,
    run: Path,
    backbone: Backbone,
    speed: Speed,
    device: torch.device,
) -> None:
    """Exports the backbone, measures it beside its initialisation, and writes the summary."""
    info = check_name(config.dataset)
    settings = {"method": method, **asdict(config)}
    export_backbone(backbone, run, mean=info.mean, std=info.std, training=settings)
    draw_curves(run)

    protocols = list(PROTOCOL_NAMES)
    # What was exported is what is measured; it is not compiled.
    backbone = load_backbone(run)
    trained_name = "plain" if config.mix_weight == 0 else "MixCo"
    backbones = {
        f"{method}, {trained_name}": backbone,
        "random initialisation": create_initial_backbone(
            replace(config, pretrained=False), backbone.image_size
        ),
    }
    with fail_in_one_line():
        trained, initial = (
            evaluate_backbone(
                module,
                config.dataset,
                config.data_dir,
                protocols,
                image_size=backbone.image_size,
                batch_size=max(config.batch_size, 256),
                precision=config.precision,
                keep_decoded=config.keep_decoded,
                num_workers=default_num_workers(config.num_workers),
                knn_k=config.knn_k,
                seed=config.seed,
                device=device,
            )
            for module in backbones.values()
        )
    summary = {
        "linear_top1": trained["torch"].top1,
        "linear_top5": trained["torch"].top5,
        "sklearn_top1": trained["sklearn"].top1,
        "knn_top1": trained["knn"].top1,
        "random_init_linear_top1": initial["torch"].top1,
        "random_init_sklearn_top1": initial["sklearn"].top1,
        "random_init_knn_top1": initial["knn"].top1,
        "images_per_second": speed.images / speed.seconds,
        "epochs": config.epochs,
        "seconds": speed.seconds,
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("mixco-lightly", "torch", "lightly", "timm", "pytorch-lightning")
            },
        },
    }
    export_backbone(backbone, run, mean=info.mean, std=info.std, training=settings, metrics=summary)
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print_results(
        f"{config.dataset}, test images, after {config.epochs} epochs",
        "backbone",
        dict(zip(backbones, (trained, initial), strict=True)),
    )
    print(
        f"Trained for {timedelta(seconds=round(speed.seconds))} at "
        f"{summary['images_per_second']:,.0f} images/s. Everything is in {run}."
    )


def draw_curves(run: Path) -> None:
    """Draws the losses in metrics.csv over the steps as curves.png."""
    from matplotlib.figure import Figure

    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in ("loss", "contrast", "mix"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel="step", ylabel="nats", title=str(run))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(run / "curves.png", dpi=120)
