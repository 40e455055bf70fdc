"""What the user leaves open in a run's options is completed here, once, and checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, NamedTuple

import pytorch_lightning as pl

import mixco_lightly.machine as machine
from mixco_lightly.backbones.backbone import Backbone, create_backbone
from mixco_lightly.data.catalogue import find_dataset, get_dataset
from mixco_lightly.data.images import have_one_size
from mixco_lightly.data.own_code import load_function
from mixco_lightly.training.loggers import choose_loggers
from mixco_lightly.training.open_data import RunImages, open_images
from mixco_lightly.training.optimiser import complete_optimiser
from mixco_lightly.training.options import (
    Config,
    MachineOptions,
    NetworkOptions,
    PretrainConfig,
    ProtocolOrNone,
    ViewOptions,
)
from mixco_lightly.training.processes import check_processes, is_rank_zero, print_on_rank_zero
from mixco_lightly.training.run_folder import probe_output
from mixco_lightly.training.run_length import check_warmup, complete_length


class Resolved(NamedTuple, Generic[Config]):
    """What a run starts from.

    Attributes:
        config: The options, of which none is open any more.
        backbone: The backbone at initialisation.
        images: The images, opened.
    """

    config: Config
    backbone: Backbone
    images: RunImages


def resolve(config: Config) -> Resolved[Config]:
    """Completes and checks options, and opens what they name.

    What takes long comes last, so that a wrong option fails early.

    Args:
        config: The options as the user gave them.

    Raises:
        ValueError: If options do not go together, or a name is unknown.
        OSError: If data is missing, or output_dir cannot be written to.
        ImageError: If too many images are broken.
    """
    dataset, data_dir = choose_dataset(config.dataset, config.data_dir)
    spec = get_dataset(dataset).with_columns(config.image_column, config.label_column)
    image_size = config.image_size or spec.image_size
    if image_size is None:
        raise ValueError(f"{dataset} has no image size of its own: give --image_size.")
    config = replace(
        config,
        dataset=dataset,
        data_dir=data_dir,
        image_size=image_size,
        backbone=config.backbone or spec.backbone,
        stem=config.stem or spec.stem,
        precision=machine.choose_precision(config.precision, config.accelerator),  # type: ignore[arg-type]
        protocol=choose_protocols(config.protocol),
        logger=choose_loggers(config.logger),
    )
    check_numbers(config)
    check_views(config)
    check_processes(config.devices, config.num_nodes)
    if is_rank_zero():
        probe_output(Path(config.output_dir))
    check_machine(config)
    backbone = create_initial_backbone(config, image_size, config.seed)
    # Published weights go with images that are normalised as theirs were.
    facts = spec.facts.normalised(backbone.mean, backbone.std)
    images = open_images(config, spec, data_dir, facts, Path(config.output_dir))
    config, line = complete_optimiser(complete_length(config, images), backbone)
    print_on_rank_zero(line)

    one_size = have_one_size(images.train)
    if config.augment == "device" and not one_size:
        raise ValueError(
            f"--augment device needs images of one size that are decoded once; those in "
            f"{data_dir} are not: use --augment workers."
        )
    on_device = config.augment != "workers" and one_size and config.transform is None
    num_workers = config.num_workers
    if num_workers is None and on_device and machine.runs_on_cpu(config.accelerator):
        num_workers = 0  # a worker beside a network on the same processors only takes turns with it
    config = replace(
        config,
        augment="device" if on_device else "workers",
        num_workers=machine.default_num_workers(num_workers),
    )
    return Resolved(config, backbone, images)


def choose_dataset(dataset: str | None, data_dir: str | None) -> tuple[str, str]:
    """Completes --dataset and --data_dir, and prints a line if it finds the dataset itself.

    Args:
        dataset: The dataset's name. Default: the dataset in ``data_dir``, or digits without it.
        data_dir: Folder of the data. Default: data.

    Returns:
        The dataset's name and the folder.

    Raises:
        ValueError: If the folder has several datasets.
        OSError: If it has none, or cannot be read.
    """
    if dataset is None and data_dir is not None:
        dataset, found = find_dataset(data_dir)
        print_on_rank_zero(f"Found {found} in {data_dir}: --dataset {dataset}.")
    return dataset or "digits", "data" if data_dir is None else data_dir


def choose_protocols(names: Sequence[ProtocolOrNone]) -> list[ProtocolOrNone]:
    """Returns the protocols without "none"; raises a ValueError if it is mixed with others."""
    if "none" in names and set(names) != {"none"}:
        raise ValueError(f"--protocol none stands alone, got {' '.join(names)}.")
    return [name for name in names if name != "none"]


def check_numbers(options: PretrainConfig) -> None:
    """Raises a ValueError for numbers that do not go together."""
    if options.max_steps is None:  # otherwise complete_length checks it
        check_warmup(options)
    if options.learning_rate is not None and options.base_learning_rate is not None:
        raise ValueError(
            f"--learning_rate {options.learning_rate:g} and --base_learning_rate "
            f"{options.base_learning_rate:g} are two values for one rate: give one of them."
        )
    if options.optimizer == "lars" and options.weight_decay == 0:
        raise ValueError(
            "--optimizer lars scales the rate of the weights that decay: give a --weight_decay "
            "above 0, such as 1e-6."
        )
    if options.online_probe and not options.knn_every_n_epochs:
        raise ValueError(
            "--online_probe is measured when the nearest neighbours are, but --knn_every_n_epochs "
            "is 0: give --knn_every_n_epochs 5, or leave --online_probe out."
        )
    if options.batch_size < 2:
        raise ValueError(f"--batch_size must be at least 2, got {options.batch_size}.")


def check_views(options: ViewOptions) -> None:
    """Raises a ValueError for options that a transform of the user's does not have."""
    if options.transform is None:
        return
    load_function(options.transform)
    if options.augment == "device":
        raise ValueError(
            f"--transform {options.transform} makes views image by image, in the loader's "
            "processes: leave out --augment device."
        )
    if options.min_scale is not None or options.augmentations != "full":
        raise ValueError(
            f"--transform {options.transform} decides all changes of the views: leave out "
            "--min_scale and --augmentations."
        )


def check_machine(options: MachineOptions) -> None:
    """Raises a ValueError if this machine cannot do what the options ask for."""
    on_cpu = machine.runs_on_cpu(options.accelerator)
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if options.compile and on_cpu and not any(name and shutil.which(name) for name in names):
        raise ValueError(
            "--compile needs a C++ compiler on a CPU, and there is neither g++ nor clang++: "
            "install one, or leave --compile out."
        )
    # torch synchronises BatchNorm on GPUs only.
    if options.sync_batchnorm and on_cpu and options.num_processes > 1:
        raise ValueError(
            f"--sync_batchnorm needs GPUs, but --accelerator {options.accelerator} trains "
            f"{options.num_processes} processes on the CPU: train on GPUs, or leave "
            "--sync_batchnorm out."
        )


def create_initial_backbone(options: NetworkOptions, image_size: int, seed: int) -> Backbone:
    """Creates the backbone at initialisation, which the seed alone decides.

    Raises:
        ValueError: If timm has no such name, or the backbone does not take such images.
    """
    assert options.backbone is not None
    assert options.stem is not None
    for name in ("name", "image_size", "stem", "pretrained"):
        if name in options.backbone_kwargs:
            raise ValueError(f"--backbone_kwargs has {name}, which is an option of its own.")
    pl.seed_everything(seed, verbose=False)
    return create_backbone(
        options.backbone,
        image_size,
        stem=options.stem,
        pretrained=options.pretrained,
        **options.backbone_kwargs,
    )
