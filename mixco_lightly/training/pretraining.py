"""One pretraining run, whatever the method: data, trainer, run folder, evaluation, summary.

A run writes under its output_dir: config.yaml, metrics.csv, checkpoints/last.ckpt (after every
epoch), backbone.safetensors, backbone.json, curves.png and summary.json.
"""

from __future__ import annotations

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
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from torch import nn

import mixco_lightly.machine as machine
from mixco_lightly import ProbeResult, create_backbone, export_backbone, load_backbone
from mixco_lightly.backbones.backbone import Backbone
from mixco_lightly.data.broken import ImageError
from mixco_lightly.data.datasets import check_name
from mixco_lightly.data.transforms import create_test_transform
from mixco_lightly.evaluation.evaluator import (
    PROTOCOL_NAMES,
    Normalisation,
    Protocol,
    evaluate_backbone,
    print_results,
)
from mixco_lightly.files import WriteError, replace_file
from mixco_lightly.models.sync_batchnorm import TimmSyncBatchNorm
from mixco_lightly.training.command_line import fail_in_one_line
from mixco_lightly.training.data_module import PretrainData
from mixco_lightly.training.dataset_choice import choose_dataset
from mixco_lightly.training.diagnosis import (
    WarnAtChance,
    describe_chance,
    find_below_random,
    find_chance,
)
from mixco_lightly.training.kept_checkpoints import KeepCheckpoints
from mixco_lightly.training.metrics import LogLearningRate, create_loggers, draw_curves
from mixco_lightly.training.option_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from mixco_lightly.training.processes import (
    EndTogether,
    check_processes,
    end_with_first_process,
    is_rank_zero,
    prepare_on_rank_zero,
    print_on_rank_zero,
    trainer_plugins,
)
from mixco_lightly.training.progress import (
    AFTER_DIVERGENCE,
    EpochLines,
    NonFiniteLossError,
    ProgressBar,
    Speed,
    StopOnNonFiniteLoss,
)
from mixco_lightly.training.run_folder import (
    CheckpointFiles,
    checkpoint_path,
    prepare_run,
    probe_output,
    read_steps,
)
from mixco_lightly.training.training_knn import TrainingKNN


@dataclass
class PretrainConfig:
    """Options of a pretraining run.

    Args:
        dataset: One of digits, cifar10, cifar100, tiny-imagenet, imagefolder. Default: what is
            found in data_dir, or digits without it. An imagefolder has labels only in
            train/CLASS beside test/CLASS or val/CLASS; of any other folder all images, or those
            in its folder train, are trained on without labels.
        data_dir: Folder of the data; not used for digits. Default: data.
        download: Whether to download CIFAR if it is missing.
        image_size: Height and width of the views in pixels. Default: the dataset's;
            an imagefolder has none and needs this.
        min_scale: Smallest area of the random crops, as a part of the image's. Default: 0.2, as in
            the authors' code; for digits 0.5.
        augmentations: Random changes of the views: full, or crop-flip for crops and flips only.
        train_fraction: Part of the training images to train on, the same part of each class,
            drawn by the seed. The evaluation has all of them.
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
        max_broken_images: How many images of a folder may be left out because they cannot be
            opened, of the training and of the test images each. If it is not 0 every image is
            opened once before the run, and those left out are listed in
            output_dir/broken_images.txt. With 0 the first broken image stops the run.
        protocol: What is measured at the end: torch and sklearn are linear probes. With none
            neither that nor knn_every_n_epochs is measured, nor is it on images without labels.
        random_init: Whether the same is measured with the backbone at initialisation.
        knn_k: Number of neighbours of the kNN evaluation.
        knn_every_n_epochs: After how many epochs nearest neighbours are tried on a few training
            images, whose labels training never sees; 0 for never. It takes 1 to 2% of the time.
        keep_every_n_epochs: After how many epochs a checkpoint is kept for good, as
            checkpoints/epoch-0010.ckpt beside last.ckpt; 0 keeps the last only.
        num_workers: Processes that load images, on each device. Default: the number of
            processors, 8 at most; 0 where augmentation and network share them.
        accelerator: Lightning's accelerator: auto, cpu, gpu and so on.
        devices: Number of devices on each node.
        num_nodes: Number of nodes.
        precision: Lightning's precision in training. auto takes bf16-mixed where the device is
            faster at that, 16-mixed on other GPUs and 32-true elsewhere. Features, kNN and probes
            are computed in float32 in any case. (Weights in half precision are not offered: the
            momentum encoder would stand still.)
        sync_batchnorm: Whether BatchNorm has the statistics of all devices' images, as in the
            authors' SimCLR, and not of each device's own. It has no effect on one device, and
            needs GPUs on several.
        compile: Whether to compile networks and loss with torch.compile; needs a C++ compiler on
            a CPU, and minutes before the first step.
        output_dir: Folder of the run.
        resume: Whether to go on with the run in output_dir, from its last finished epoch; all
            that decides the result must be as it was.
        overwrite: Whether to replace the run in output_dir.
    """

    dataset: str | None = None
    data_dir: str | None = None
    download: bool = False
    image_size: PositiveInt | None = None
    min_scale: PositiveFloat | None = None
    augmentations: Literal["full", "crop-flip"] = "full"
    train_fraction: PositiveFloat = 1.0
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
    max_broken_images: NonNegativeInt = 0
    protocol: list[Literal[Protocol, "none"]] = field(default_factory=lambda: [*PROTOCOL_NAMES])
    random_init: bool = True
    knn_k: PositiveInt = 200
    knn_every_n_epochs: NonNegativeInt = 5
    keep_every_n_epochs: NonNegativeInt = 0
    num_workers: NonNegativeInt | None = None
    accelerator: str = "auto"
    devices: PositiveInt = 1
    num_nodes: PositiveInt = 1
    precision: Literal["auto", "32-true", "16-mixed", "bf16-mixed"] = "auto"
    sync_batchnorm: bool = False
    compile: bool = False
    output_dir: str = "runs/pretrain"
    resume: bool = False
    overwrite: bool = False


Config = TypeVar("Config", bound=PretrainConfig)
Evaluate = Callable[..., dict[str, dict[Any, ProbeResult]]]


def pretrain(
    method: str,
    config: Config,
    create_model: Callable[[Backbone, Config], pl.LightningModule],
    mixed_views: Sequence[int],
    transform: str | None = None,
    num_views: int = 2,
    evaluate: Evaluate | None = None,
    count_negatives: Callable[[Config], int] | None = None,
    needs_labels: bool = False,
) -> None:
    """Pretrains a backbone, exports it, and compares its features with random initialisation.

    Args:
        method: The method's name.
        config: The options.
        create_model: Makes the method's LightningModule from a backbone.
        mixed_views: The views that are mixed, unless mix_weight is 0.
        transform: The method whose augmentations are taken. Default: this one's.
        num_views: Number of views of each image.
        evaluate: Measures the trained module, given it, the exported backbone and what
            evaluate_backbone is given, and returns the results of its parts by name: first those
            of the backbone. Default: evaluate_backbone.
        count_negatives: The number of negatives of a query in the contrast term, from which its
            chance level follows. Default: the run does not mention a chance level.
        needs_labels: Whether the method trains with labels.
    """
    end_with_first_process()
    run = Path(config.output_dir)
    with fail_in_one_line((ValueError, OSError, MisconfigurationException)):
        dataset, data_dir = choose_dataset(config.dataset, config.data_dir)
        is_digits = dataset == "digits"
        config = replace(
            config,
            dataset=dataset,
            data_dir=data_dir,
            backbone=config.backbone or ("test_resnet" if is_digits else "resnet18"),
            stem=config.stem or ("timm" if is_digits else "auto"),
            precision=machine.choose_precision(config.precision, config.accelerator),  # type: ignore[arg-type]
            protocol=choose_protocols(config.protocol),
        )
        image_size = config.image_size or check_name(dataset).image_size
        if image_size is None:
            raise ValueError(f"{dataset} has no image size of its own: give --image_size.")
        check_processes(config.devices, config.num_nodes)
        if is_rank_zero():
            probe_output(run)
        if config.compile:
            check_compiler(config.accelerator)
        if config.sync_batchnorm:
            check_sync_batchnorm(config)
        if machine.runs_on_cpu(config.accelerator):
            machine.keep_freed_memory()
        backbone = create_initial_backbone(config, image_size)
        data = PretrainData(
            *(transform or method, config, image_size, mixed_views, num_views),
            # Published weights go with images that are normalised as theirs were.
            normalize=(backbone.mean, backbone.std),
        )
        if needs_labels and data.unlabelled:
            raise ValueError(
                f"{method} trains with labels, and {data.unlabelled}: add the folders, or choose a "
                "method without labels."
            )
        config = replace(config, augment=data.config.augment, num_workers=data.config.num_workers)
        # Convolutions are faster in this layout, on CPUs and, in half precision, on GPUs.
        model = create_model(backbone, config).to(memory_format=torch.channels_last)
        if config.compile:
            compile_parts(model)
        speed = Speed()
        negatives = None if count_negatives is None else count_negatives(config)
        trainer = create_trainer(config, run, speed, data, image_size, negatives)
        checkpoint = checkpoint_path(run)

        def prepare() -> None:
            prepare_run(run, asdict(config), config.resume, config.overwrite)
            if config.resume:
                read_steps(checkpoint, asdict(config))
            if data.broken:
                with replace_file(run / "broken_images.txt") as file:
                    file.write("".join(f"{line}\n" for line in data.broken.values()).encode())

        prepare_on_rank_zero(trainer, prepare)
        finished_steps = read_steps(checkpoint) if config.resume else 0
        trainer.loggers = create_loggers(run, finished_steps)
    print_on_rank_zero(
        f"{method} on {config.dataset}: {len(data.part):,} images of {image_size} pixels, "
        f"{config.backbone} (stem {backbone.stem}), {config.epochs} epochs, "
        f"mix_weight {config.mix_weight:g}, seed {config.seed}, precision {config.precision}, "
        f"augmented by {config.augment} -> {run}"
    )
    if negatives is not None:
        print_on_rank_zero(f"Chance level of the contrast term: {describe_chance(negatives)}.")

    if data.broken:
        print_on_rank_zero(
            f"{len(data.broken):,} broken images are left out: {run / 'broken_images.txt'}"
        )
    if data.unmeasured:
        print_on_rank_zero(
            f"No kNN while training and no probes at the end: {data.unmeasured}. evaluate.py "
            "measures the backbone on labelled images afterwards."
        )

    def describe(error: BaseException) -> str | None:
        if isinstance(error, FloatingPointError):  # the queue's, which does not know the run
            error = NonFiniteLossError(
                f"{error} It was step {trainer.global_step + 1} of the run (process "
                f"{trainer.global_rank}). {AFTER_DIVERGENCE}"
            )
        try:
            with fail_in_one_line((ImageError, NonFiniteLossError, WriteError)):
                raise error
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, str) else ""
        except BaseException:
            return None

    def say_stopped() -> None:
        if checkpoint.is_file():
            script = shlex.quote(sys.argv[0])
            resume = f"python {script} --config {shlex.quote(str(run / 'config.yaml'))} --resume"
            print_on_rank_zero(
                f"Stopped after {trainer.current_epoch} epochs. Go on with:\n  {resume}"
            )

    # A list of Lightning's, in the order that the callbacks are called in.
    trainer.callbacks.append(EndTogether(trainer, run, describe, say_stopped))  # type: ignore[attr-defined]
    try:
        trainer.fit(
            model,
            datamodule=data,
            ckpt_path=str(checkpoint) if config.resume else None,
            weights_only=True,
        )
    except SystemExit:  # Lightning's after Ctrl-C
        say_stopped()
        raise
    except Exception as error:
        line = describe(error)
        if line is None:
            raise
        say_stopped()
        sys.exit(line)
    if trainer.is_global_zero:
        device = trainer.strategy.root_device
        with fail_in_one_line((WriteError,)):
            # What cannot be measured on these images stays in config.yaml as it was asked for.
            measured = replace(config, protocol=[]) if data.unmeasured else config
            finish_run(
                *(method, measured, run, model, speed, device, data.normalize, evaluate, negatives)
            )


def choose_protocols(
    names: Sequence[Literal[Protocol, "none"]],
) -> list[Literal[Protocol, "none"]]:
    """The protocols without "none"; ValueError if that is mixed with others."""
    if "none" in names and set(names) != {"none"}:
        raise ValueError(f"--protocol none stands alone, got {' '.join(names)}.")
    return [name for name in names if name != "none"]


def check_compiler(accelerator: str) -> None:
    """Raises a ValueError if torch.compile has no C++ compiler that it needs on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if machine.runs_on_cpu(accelerator) and not any(name and shutil.which(name) for name in names):
        raise ValueError(
            "--compile needs a C++ compiler on a CPU, and there is neither g++ nor clang++: "
            "install one, or leave --compile out."
        )


def compile_parts(model: nn.Module) -> None:
    """Compiles the networks and losses of a model, and each module of its lists."""
    parts: list[nn.Module] = []
    for part in model.children():
        # A list is never called itself.
        parts += part if isinstance(part, nn.ModuleList) else [part]
    for part in parts:
        part.compile()
    # All parts are compiled through one function of torch's, and count against its limit together.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 8 * len(parts))


def check_sync_batchnorm(config: PretrainConfig) -> None:
    """Raises a ValueError if BatchNorm cannot be synchronised: torch can do it on GPUs only."""
    processes = config.devices * config.num_nodes
    if processes > 1 and machine.runs_on_cpu(config.accelerator):
        raise ValueError(
            f"--sync_batchnorm needs GPUs, but --accelerator {config.accelerator} trains "
            f"{processes} processes on the CPU: train on GPUs, or leave --sync_batchnorm out."
        )


def create_initial_backbone(config: PretrainConfig, image_size: int) -> Backbone:
    """The backbone at initialisation, which the seed alone decides."""
    assert config.backbone is not None
    assert config.stem is not None
    for name in ("name", "image_size", "stem", "pretrained"):
        if name in config.backbone_kwargs:
            raise ValueError(f"--backbone_kwargs has {name}, which is an option of its own.")
    pl.seed_everything(config.seed, verbose=False)
    return create_backbone(
        config.backbone,
        image_size,
        stem=config.stem,
        pretrained=config.pretrained,
        **config.backbone_kwargs,
    )


def create_trainer(
    config: PretrainConfig,
    run: Path,
    speed: Speed,
    data: PretrainData,
    image_size: int,
    negatives: int | None,
) -> pl.Trainer:
    """Lightning's trainer, with a checkpoint after every epoch; it has no logger yet."""
    # The run's folder was made just now, or is resumed.
    warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
    # The user chose the number of workers, or machine.default_num_workers did.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # What Lightning says about itself; warnings still come through.
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    terminal = Console().is_terminal
    log_every_n_steps = min(10, data.steps_per_epoch)
    callbacks: list[Callback] = [speed, StopOnNonFiniteLoss(log_every_n_steps), LogLearningRate()]
    if config.knn_every_n_epochs and not data.unmeasured:
        assert config.dataset is not None
        callbacks.append(
            TrainingKNN(
                data.images,
                create_test_transform(config.dataset, image_size, *data.normalize),
                every_n_epochs=config.knn_every_n_epochs,
                batch_size=max(config.batch_size, 256),
                num_workers=machine.default_num_workers(config.num_workers),
                seed=config.seed,
            )
        )
    if negatives is not None:
        callbacks.append(WarnAtChance(run, negatives))
    if config.keep_every_n_epochs:
        # Before last.ckpt: a run killed between the two takes the epoch again and writes both.
        callbacks.append(KeepCheckpoints(checkpoint_path(run).parent, config.keep_every_n_epochs))
    checkpoints = ModelCheckpoint(
        dirpath=checkpoint_path(run).parent,
        filename=checkpoint_path(run).stem,
        save_top_k=1,
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    plugins: list[Any] = [CheckpointFiles(asdict(config)), *trainer_plugins()]
    if config.sync_batchnorm:
        plugins.append(TimmSyncBatchNorm())
    bar = ProgressBar(speed, log_every_n_steps) if terminal else EpochLines(speed)
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        precision=config.precision,  # type: ignore[arg-type]
        plugins=plugins,
        # In a SLURM job Lightning loads an hpc_ckpt_*.ckpt that it finds in this folder, by default
        # the current one.
        default_root_dir=run,
        logger=False,
        log_every_n_steps=log_every_n_steps,
        callbacks=[*callbacks, checkpoints, bar],
        enable_progress_bar=terminal,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
    )


def finish_run(
    method: str,
    config: PretrainConfig,
    run: Path,
    model: pl.LightningModule,
    speed: Speed,
    device: torch.device,
    normalize: Normalisation,
    evaluate: Evaluate | None,
    negatives: int | None,
) -> None:
    """Exports the backbone, measures it beside its initialisation, and writes the summary."""
    assert config.dataset is not None
    assert config.data_dir is not None
    protocols = [name for name in config.protocol if name != "none"]
    info = check_name(config.dataset)
    mean, std = normalize[0] or info.mean, normalize[1] or info.std
    settings = {"method": method, **asdict(config)}
    export_backbone(model, run, mean=mean, std=std, training=settings)
    draw_curves(run)

    # What was exported is what is measured; it is not compiled. Precision and batch size are
    # evaluate.py's defaults, whatever those of the training, so that it finds the same figures.
    backbone = load_backbone(run)
    options: dict[str, Any] = {
        "image_size": backbone.image_size,
        "keep_decoded": config.keep_decoded,
        "max_broken_images": config.max_broken_images,
        "num_workers": machine.default_num_workers(config.num_workers),
        "knn_k": config.knn_k,
        "seed": config.seed,
        "device": device,
        "normalize": normalize,
    }
    data = (config.dataset, config.data_dir, protocols)
    parts: dict[str, dict[Any, ProbeResult]]
    with fail_in_one_line():
        if not protocols:
            parts = {}
        elif evaluate is None:
            trained_name = "plain" if config.mix_weight == 0 else "MixCo"
            parts = {trained_name: evaluate_backbone(backbone, *data, **options)}
        else:
            parts = evaluate(model, backbone, *data, **options)
        rows = {f"{method}, {name}".replace("_", " "): part for name, part in parts.items()}
        # Of what a method measures beside its backbone the keys start with the part's name.
        prefixes = [f"{name}_" if index else "" for index, name in enumerate(parts)]
        if protocols and config.random_init:
            initial = create_initial_backbone(
                replace(config, pretrained=False), backbone.image_size
            )
            rows["random initialisation"] = evaluate_backbone(initial, *data, **options)
            prefixes.append("random_init_")
    summary: dict[str, Any] = {
        f"{prefix}{'linear' if protocol == 'torch' else protocol}_top1": result.top1
        for prefix, results in zip(prefixes, rows.values(), strict=True)
        for protocol, result in results.items()
    }
    own = next(iter(parts.values()), {})
    if "torch" in own:
        summary["linear_top5"] = own["torch"].top5
    summary |= {
        "images_per_second": speed.images / speed.seconds,
        "epochs": config.epochs,
        "seconds": speed.seconds,
        "peak_megabytes": speed.peak_megabytes,
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("mixco-lightly", "torch", "lightly", "timm", "pytorch-lightning")
            },
        },
    }
    export_backbone(backbone, run, mean=mean, std=std, training=settings, metrics=summary)
    with replace_file(run / "summary.json") as file:
        file.write((json.dumps(summary, indent=2) + "\n").encode())
    if rows:
        print_results(
            f"{config.dataset}, test images, after {config.epochs} epochs",
            "backbone",
            rows,
        )
    findings = []
    if negatives is not None:
        findings.append(find_chance(run, config.epochs, config.epochs, negatives))
    if "random initialisation" in rows:
        findings.append(find_below_random(own, rows["random initialisation"]))
    print("".join(f"{line}\n" for line in findings if line), end="")
    print(
        f"Trained for {timedelta(seconds=round(speed.seconds))} at "
        f"{summary['images_per_second']:,.0f} images/s, with at most "
        f"{speed.peak_megabytes / 1e3:,.1f} GB of memory. Everything is in {run}."
    )
